"""Measures `prepare_agreement.py` against annotated sentences: text in, annotations as gold.

A found verb is right if its sentence has that word annotated, each annotation used once. The
published files leave out verbs of which a form is several tokens in GPT-2, so such a verb that is
not annotated counts as cut, not as wrong.
"""

import collections
import contextlib
import io
import json
import os
import tempfile

import corpus
import prepare_agreement


def prepared(texts, model):
    """The lines that the fixed call makes of the texts, by text."""
    with tempfile.TemporaryDirectory() as folder:
        text, out = os.path.join(folder, "text.txt"), os.path.join(folder, "out.jsonl")
        with open(text, "w", encoding="utf-8", newline="") as file:
            file.writelines(f"{line}\n" for line in texts)
        with contextlib.redirect_stderr(io.StringIO()):
            prepare_agreement.run(["--text", text, "--lines", "--out", out, "--model", model])
        with open(out, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    return {line["clean_text"]: line for line in lines}


def measure(gold, found, tokenizer):
    """Counts over all sentences, and what was wrong, missed or flipped otherwise."""
    counts, differences = collections.Counter(), []
    nothing = {"clean_verbs": [], "corr_verbs": [], "verb_spans": []}
    for row in gold:
        text = row["clean_text"]
        line = found.get(text, nothing)
        offsets = tokenizer.encode(text).offsets
        # Where the stored position is out of the text, no span is there to be met.
        ends = [offsets[p][1] if p < len(offsets) else None for p in row["clean_verb_pos"]]
        left = list(zip(row["clean_verbs"], row["corr_verbs"], ends))
        for verb, flipped, span in zip(line["clean_verbs"], line["corr_verbs"], line["verb_spans"]):
            match = next((entry for entry in left if entry[0] == verb), None)
            if match:
                left.remove(match)
                counts["right"] += 1
                counts["equal flips"] += flipped == match[1]
                counts["at the stored position"] += span[1] == match[2]
                if flipped != match[1]:
                    differences.append(("flip", verb, f"{flipped}, gold {match[1]}", text))
            elif all(is_token(form, tokenizer) for form in (verb, flipped)):
                counts["wrong"] += 1
                differences.append(("wrong", verb, flipped, text))
            else:
                counts["cut"] += 1
        counts["missed"] += len(left)
        differences += [("missed", verb, flipped, text) for verb, flipped, _ in left]
    return counts, differences


def is_token(form, tokenizer):
    """Whether a form is one of GPT-2's tokens where it stands in a text: behind a space, or "'s"."""
    text = form if form.startswith(("'", "’")) else f" {form}"
    return len(tokenizer.encode(text).ids) == 1


def run(arguments):
    options = corpus.Parser(description=__doc__.splitlines()[0])
    options.add_argument("gold", nargs="+", help="annotated JSON Lines with GPT-2's positions")
    options.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="GPT-2's vocab.json and merges.txt"
    )
    options.add_argument("--model", default="en_core_web_sm", help="spaCy's model")
    options.add_argument("--differences", action="store_true", help="show each difference")
    options = options.parse_args(arguments)
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError:
        raise corpus.InputError("tokenizers is not installed: pip install tokenizers") from None
    files = [os.path.join(options.tokenizer, name) for name in ("vocab.json", "merges.txt")]
    for path in [*files, *options.gold]:
        if not os.path.isfile(path):
            raise corpus.InputError(f"{path}: not there")
    tokenizer = ByteLevelBPETokenizer(*files)
    for path in options.gold:
        with open(path, encoding="utf-8") as file:
            gold = [json.loads(line) for line in file]
        found = prepared([row["clean_text"] for row in gold], options.model)
        counts, differences = measure(gold, found, tokenizer)
        print(path)
        for name, part, whole in [
            ("precision", "right", ["right", "wrong"]),
            ("precision, cut verbs wrong too", "right", ["right", "wrong", "cut"]),
            ("recall", "right", ["right", "missed"]),
            ("equal flips", "equal flips", ["right"]),
            ("at the stored position", "at the stored position", ["right"]),
        ]:
            total = sum(counts[key] for key in whole)
            print(f"  {counts[part] / max(total, 1):.4f}  {name} ({counts[part]} of {total})")
        if options.differences:
            for difference in differences:
                print("  " + "\t".join(difference))


if __name__ == "__main__":
    corpus.main(run)
