"""Holds lm-evaluation-harness's verdicts on a saved folder against those of task `multiple_choice`.

    python tests/tools/choices.py --program target/release/circuit-tuning --data ../shared/data RUN/model

Makes multiple-choice questions of the published data, has both programs answer them, and fails unless `acc` and
`acc_norm` agree in every question. docs/evaluation.md has what it printed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

YAML = """\
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verbs(path, count):
    """A sentence up to its first verb that is annotated; the rest with its verbs as they are, and flipped."""
    rows = lines(path)
    # Sentences with letters beyond ASCII, in which characters and bytes are not the same, come first.
    rows.sort(key=lambda row: row["clean_text"].isascii())
    for row in rows[:count]:
        right, wrong = row["clean_text"].split(" "), row["corr_text"].split(" ")
        start = next((at for at, pair in enumerate(zip(right, wrong)) if len(set(pair)) == 2), 0)
        if start > 0:
            choices = [" ".join(words[start:]) for words in (wrong, right)]
            yield {"question": " ".join(right[:start]), "choices": choices, "answer": 1}


def sums(path, count):
    """A problem and four results, the others those of its neighbours. The question ends with a line's end."""
    rows = lines(path)[: count + 3]
    results = [row["answer"].rsplit("####", 1)[1].strip() for row in rows]
    for at in range(count):
        choices = list(dict.fromkeys(results[at : at + 4]))
        yield {"question": rows[at]["question"] + "\nAnswer:\n", "choices": choices, "answer": 0}


def ours(program, model, data, folder):
    command = [program, "eval", "--model", model, "--task", "multiple_choice", "--data", data, "--out", folder]
    shown = subprocess.run([*command, "--json", "--quiet"], check=True, capture_output=True, text=True)
    return json.loads(shown.stdout), lines(folder / "choices.jsonl")


def theirs(model, data, folder):
    (folder / "local_choices.yaml").write_text(YAML.format(data=json.dumps(str(data))))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
    command += ["--tasks", "local_choices", "--include_path", folder, "--device", "cpu", "--batch_size", "8"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder)}
    subprocess.run([*command, "--output_path", folder, "--log_samples"], check=True, env=offline)
    [results] = folder.glob("*/results_*.json")
    [samples] = folder.glob("*/samples_*.jsonl")
    figures = json.loads(results.read_text())["results"]["local_choices"]
    return figures, sorted(lines(samples), key=lambda sample: sample["doc_id"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="a saved folder with its tokenizer")
    parser.add_argument("--program", required=True, help="circuit-tuning")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a folder with sv/ and math/")
    parser.add_argument("--count", type=int, default=100, help="sentences; a fifth as many problems")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        questions = [*verbs(arguments.data / "sv/test_3000.jsonl", arguments.count)]
        questions += sums(arguments.data / "math/gsm8k_test.jsonl", arguments.count // 5)
        data = folder / "questions.jsonl"
        data.write_text("".join(json.dumps(question) + "\n" for question in questions))
        own_figures, own = ours(arguments.program, arguments.model, data, folder / "ours")
        figures, samples = theirs(arguments.model, data, folder)
    disagree, furthest = 0, 0.0
    for verdict, sample in zip(own, samples, strict=True):
        scores = [float(response[0]) for response in sample["filtered_resps"]]
        pairs = zip(scores, verdict["log_likelihoods"], strict=True)
        furthest = max(furthest, *(abs(score - own) for score, own in pairs))
        if any(bool(sample[name]) != verdict[name] for name in ["acc", "acc_norm"]):
            disagree += 1
            print(f"differ: {verdict['origin']} {scores} {verdict['log_likelihoods']}")
    for name in ["acc", "acc_norm"]:
        print(f"{name}: {own_figures[name]:.4f} here, {figures[f'{name},none']:.4f} there")
    print(f"{len(own)} questions, {disagree} with another verdict; log-likelihoods differ by {furthest:.1e} at most")
    sys.exit(disagree > 0)


if __name__ == "__main__":
    main()
