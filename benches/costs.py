"""Plots what a discover-and-tune step costs against batch, length, layers, edges and the size of the circuit.

Needs matplotlib, and the program `circuit-tuning` on the path or named:

    python benches/costs.py CONFIG_FOLDER OUT.svg [--program circuit-tuning] [--steps 4]

CONFIG_FOLDER holds config.json of a GPT-2. Around its geometry, 16 sequences of 32 tokens and a circuit of 500 edges, one
thing at a time is changed; each point is the median of some steps of `circuit-tuning bench`. Prints a line a point.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("config")
parser.add_argument("out")
parser.add_argument("--program", default="circuit-tuning")
parser.add_argument("--steps", default="4")
arguments = parser.parse_args()
CONFIG = json.loads((pathlib.Path(arguments.config) / "config.json").read_text())

# The plots by title, each with the flag of `bench` or the field of config.json that is changed, and its values.
PLOTS = {
    "sequences a batch": ("--batch-size", [4, 8, 16, 32, 64]),
    "tokens a sequence": ("--seq-len", [8, 16, 32, 64, 128, 256]),
    "layers": ("n_layer", [3, 6, 12, 24]),
    "edges of the graph": ("--mlp-head-width", [None, 768, 384, 192, 96]),
    "edges of the circuit": ("--top-n", [50, 200, 500, 2000, 8000]),
}


def bench(folder, name, value):
    """The report of a step with one thing changed."""
    config = CONFIG if name.startswith("--") else CONFIG | {name: value}
    path = pathlib.Path(folder) / "config.json"
    path.write_text(json.dumps(config))
    command = [arguments.program, "bench", "--model", str(path), "--random-init", "0", "--nodes", "head,mlp"]
    command += ["--steps", arguments.steps, "--json"]
    if name.startswith("--") and value is not None:
        command += [name, str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


matplotlib.rcParams.update({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "costs"})
figure, axes = plt.subplots(1, len(PLOTS), figsize=(13, 2.6), constrained_layout=True)
with tempfile.TemporaryDirectory() as folder:
    for axis, (title, (name, values)) in zip(axes, PLOTS.items()):
        reports = [bench(folder, name, value) for value in values]
        places = [report["edges"] for report in reports] if title == "edges of the graph" else values
        for phase, mark in [("discover", "o-"), ("tune", "s--")]:
            seconds = [report[phase]["median_s"] for report in reports]
            axis.plot(places, seconds, mark, label=phase, markersize=3, linewidth=1)
            print(f"{title}, {phase}:", ", ".join(f"{at}: {s:.2f} s" for at, s in zip(places, seconds)), flush=True)
        axis.set(xlabel=title, xscale="log", yscale="log", ylim=(0.1, 10))
        axis.set_xticks(places, [f"{place:,}" for place in places], rotation=30)
        axis.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axis.minorticks_off()
axes[0].set_ylabel("seconds")
axes[0].legend(frameon=False)
figure.savefig(arguments.out, metadata={"Date": None})
