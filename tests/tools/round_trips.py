"""Holds the logits of saved folders, as other programs compute them, against `circuit-tuning logits`.

    python tests/tools/round_trips.py --program target/release/circuit-tuning
    python tests/tools/round_trips.py --program … --converter llama.cpp/convert_hf_to_gguf.py RUN…

A RUN is a run's folder with `model/`, and `adapter/` where the run trained LoRA. Without any, a small random model of
every family is tuned first, its circuit and with LoRA. Those programs are asked that can be imported: transformers,
PEFT, TransformerLens and, with a converter, llama.cpp (`llama-cpp-python`). It prints a table, and fails if a
difference is larger than the tolerance. docs/evaluation.md has the versions that were tried.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Nothing is fetched: what is held against each other lies on this disk.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy
import tokenizers
import torch
import transformers

TOLERANCE = 1e-4
REFERENCE = pathlib.Path(__file__).resolve().parents[1] / "reference"
# A reference case of each family. Its weights are large enough for every part of the model to matter.
CASES = [
    "gpt2-key-mean", "llama-key-mean", "qwen2-tune-sgd", "qwen3-all-corrupt", "mistral-all-zero-loss",
    "gemma2-tune-sgd", "gemma3-key-corrupt", "gpt-neox-all-mean-positional", "olmo2-eap-ig",
]  # fmt: skip


# What tests/saved.rs does too: SGD, which doesn't make much of gradients that are all but zero.
NODES = "--steps 5 --set tuning.optimizer=sgd --lr 0.1 --top-n 30"
LORA = "--steps 5 --selector lora --lr 1e-2"


def family(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def with_tokenizer(case, folder):
    """A reference case's model with a tokenizer, a word a token: TransformerLens doesn't load one without."""
    shutil.copytree(REFERENCE / case / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "gemma3_text":
        # The adapter's base is this folder, and transformers 4.51 doesn't read the `layer_types` that say the same.
        config["sliding_window_pattern"] = 3
        (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"w{index}": index for index in range(config["vocab_size"])}
    words = tokenizers.models.WordLevel(vocabulary, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tune_reference_cases(program, folder):
    """Runs that tuned a model of every family: a circuit's nodes, and adapters."""
    for case in CASES:
        model, data = with_tokenizer(case, folder / f"{case}-base"), REFERENCE / case / "examples.jsonl"
        for name, how in [(case, NODES), (f"{case}-lora", LORA)]:
            command = [program, "tune", "--model", model, "--task", "tokens", "--data", data, *how.split()]
            command += ["--out", folder / name, "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            yield folder / name


class Table:
    """The rows as they are found, and whether all of them are good."""

    def __init__(self):
        self.good = True
        print("| program | family | what | largest difference / largest logit | ok |\n| --- | --- | --- | --- | --- |")

    def compare(self, package, of, what, ours, theirs):
        """Adds a row; `theirs` computes logits [position, token]."""
        program = f"{package} {importlib.metadata.version(package)}"
        try:
            theirs = numpy.asarray(theirs(), dtype=numpy.float64)
            difference = numpy.abs(theirs[:, : ours.shape[1]] - ours).max() / numpy.abs(ours).max()
            verdict, good = f"{difference:.1e}", bool(difference <= TOLERANCE)
        except Exception as error:  # What a program refuses is a result, and the others are still asked.
            verdict, good = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}", False
        self.good &= good
        print(f"| {program} | {of} | {what} | {verdict} | {'yes' if good else 'NO'} |", flush=True)


class Ours:
    """The program, and the tokens that every model is run on."""

    def __init__(self, program, config):
        config = json.loads(config.read_text())
        self.program, self.vocabulary = program, config["vocab_size"]
        # More of them than any window here is long, and far enough apart for the rotation to show.
        self.tokens = [(7 * index + 5) % self.vocabulary for index in range(24)]

    def logits(self, *model):
        tokens = ",".join(map(str, self.tokens))
        command = [self.program, "logits", "--model", *model, "--tokens", tokens, "--top", self.vocabulary]
        shown = subprocess.run([*map(str, command), "--json", "--quiet"], check=True, capture_output=True)
        logits = numpy.empty((len(self.tokens), self.vocabulary))
        for row, top in zip(logits, json.loads(shown.stdout)["top"]):
            ids, values = zip(*top)
            row[list(ids)] = values
        return logits

    @torch.no_grad()
    def run(self, model):
        """The logits of a model in PyTorch."""
        logits = model(torch.tensor([self.tokens]))
        return getattr(logits, "logits", logits)[0].float().numpy()


def load(folder):
    """The model, no weight of which is drawn or left out."""
    # SDPA has no soft caps: transformers 4 leaves Gemma 2's out with it.
    eager = {"attn_implementation": "eager"} if family(folder) == "gemma2" else {}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True, **eager
    )
    wrong = {key: sorted(info[key]) for key in ["missing_keys", "unexpected_keys", "mismatched_keys"] if info[key]}
    if wrong:
        raise ValueError(f"weights: {wrong}")
    return model.eval()


def with_peft(table, ours, folder, adapter):
    """The adapter beside its base model, merged into it, and loaded with the base that it names."""
    import peft

    base = pathlib.Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    of, expected = family(folder), ours.logits(base, "--set", f"model.adapter={adapter}")

    def beside():
        return peft.PeftModel.from_pretrained(load(base), adapter).eval()

    def automatic():
        eager = {"attn_implementation": "eager"} if of == "gemma2" else {}
        return peft.AutoPeftModelForCausalLM.from_pretrained(adapter, **eager).eval()

    table.compare("peft", of, "PeftModel", expected, lambda: ours.run(beside()))
    table.compare("peft", of, "merge_and_unload", expected, lambda: ours.run(beside().merge_and_unload()))
    table.compare("peft", of, "AutoPeftModelForCausalLM", expected, lambda: ours.run(automatic()))


def with_transformer_lens(table, ours, folder):
    from transformer_lens.model_bridge import TransformerBridge

    def bridge():
        return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)

    table.compare("transformer-lens", family(folder), "TransformerBridge", ours.logits(folder), lambda: ours.run(bridge()))


def with_llama_cpp(table, ours, folder, converter):
    """The folder as its converter makes a GGUF of it, run there and here."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as place:
        gguf = pathlib.Path(place) / "model.gguf"
        command = [sys.executable, converter, folder, "--outtype", "f32", "--outfile", gguf]
        done = subprocess.run(command, capture_output=True, text=True)

        def theirs():
            if done.returncode != 0:
                raise ValueError(done.stderr.strip().splitlines()[-1])
            # Keys and values are float16 there unless it is asked for more.
            exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
            model = llama_cpp.Llama(str(gguf), n_ctx=64, logits_all=True, verbose=False, **exact)
            model.eval(ours.tokens)
            return model.scores[: len(ours.tokens)].copy()

        expected = ours.logits(folder)
        table.compare("llama-cpp-python", family(folder), "converted", expected, theirs)
        if family(folder) != "gpt2":  # Of which no GGUF file is read here.
            what = "converted, read here"
            table.compare("llama-cpp-python", family(folder), what, expected, lambda: ours.logits(gguf))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=pathlib.Path, metavar="RUN", help="run folders")
    parser.add_argument("--program", required=True, help="circuit-tuning")
    parser.add_argument("--fixture", type=pathlib.Path, help="write transformers' logits of tuned models here")
    parser.add_argument("--converter", type=pathlib.Path, help="llama.cpp's convert_hf_to_gguf.py")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    there = {name for name in ["peft", "transformer_lens", "llama_cpp"] if importlib.util.find_spec(name)}
    table, fixture = Table(), {}
    with tempfile.TemporaryDirectory() as place:
        for run in arguments.runs or tune_reference_cases(arguments.program, pathlib.Path(place)):
            folder, adapter = run / "model", run / "adapter"
            ours = Ours(arguments.program, folder / "config.json")
            if arguments.fixture and not adapter.exists():
                last = ours.run(load(folder))[-1]
                fixture[run.name] = {"tokens": ours.tokens, "logits": [round(float(x), 6) for x in last]}
            what = "merged adapter" if adapter.exists() else "tuned model"
            table.compare("transformers", family(folder), what, ours.logits(folder), lambda: ours.run(load(folder)))
            if adapter.exists() and "peft" in there:
                with_peft(table, ours, folder, adapter)
            if "transformer_lens" in there:
                with_transformer_lens(table, ours, folder)
            if "llama_cpp" in there and arguments.converter:
                with_llama_cpp(table, ours, folder, arguments.converter)
    if arguments.fixture:
        lines = (f"{json.dumps(case)}: {json.dumps(of)}" for case, of in fixture.items())
        arguments.fixture.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(not table.good)


if __name__ == "__main__":
    main()
