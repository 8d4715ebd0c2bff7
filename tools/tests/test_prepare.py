"""The prepare scripts as they are called. What needs spaCy says so where it is skipped."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest

import corpus
import prepare_agreement
import prepare_bias

TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(TOOLS, "..", "tasks", "fixtures")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name, content=None):
        path = os.path.join(self.folder, name)
        if content is not None:
            with open(path, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
        return path

    def call(self, script, *arguments):
        """A script's exit code and what it says."""
        command = [sys.executable, os.path.join(TOOLS, script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr


class WithoutSpacy(InFolder):
    def test_edits_are_made_where_they_stand(self):
        text, spans = prepare_agreement.replace("I've a key", [((1, 4), "has"), ((7, 10), "keys")])
        self.assertEqual(text, "I has a keys")
        self.assertEqual(spans, {(1, 4): (2, 5), (7, 10): (8, 12)})

    def test_lines_and_paragraphs(self):
        path = self.path("text", "One\r\n\n two\u2028three \nfour\n\n\n")
        self.assertEqual(list(corpus.pieces(path, True)), ["One", " two\u2028three ", "four"])
        self.assertEqual(list(corpus.pieces(path, False)), ["One", "two three four"])

    def test_a_long_paragraph_is_cut_behind_a_sentence(self):
        sentence = "It has a few words. "
        text = sentence * (3 * corpus.LONGEST_PIECE // len(sentence))
        cut = list(corpus.pieces(self.path("text", text), False))
        self.assertEqual(" ".join(cut), text.strip())
        self.assertTrue(len(cut) == 3 and all(piece.endswith(".") for piece in cut))

    def test_lists_are_those_that_the_task_reads(self):
        self.assertEqual(prepare_bias.python_list(["it's", "a\\b"]), r"['it\'s', 'a\\b']")

    def test_what_a_user_can_put_right_is_one_line(self):
        text, out = self.path("text", "It is."), self.path("out.csv")
        there, latin = self.path("there.csv", ""), self.path("latin", b"caf\xe9 is")
        for arguments, part in [
            (["--text", text], "--out"),
            (["--text", self.path("none"), "--out", out], "none: No such file"),
            (["--text", self.folder, "--out", out], "Is a directory"),
            (["--text", text, "--out", there], "there.csv: exists"),
            (["--text", text, "--out", os.path.join(self.folder, "no", "out.csv")], "No such file"),
            (["--text", text, "--out", out, "--model", "no_model"], "pip install"),
        ]:
            for script in ("prepare_agreement.py", "prepare_bias.py"):
                code, said = self.call(script, *arguments)
                self.assertEqual((code, said.count("\n")), (2, 1), said)
                self.assertTrue(said.startswith("error: ") and part in said, said)
        self.assertEqual(read(there), "")
        with self.assertRaisesRegex(corpus.InputError, "not UTF-8"):
            list(corpus.pieces(latin, True))

    def test_a_file_is_whole_or_not_there(self):
        path = self.path("out")
        with self.assertRaises(ValueError), corpus.new_file(path, False) as file:
            file.write("half")
            raise ValueError
        self.assertEqual(os.listdir(self.folder), [])


class WithSpacy(InFolder):
    @classmethod
    def setUpClass(cls):
        if not importlib.util.find_spec("spacy"):
            requirements = os.path.join(TOOLS, "requirements.txt")
            print(f"\nSKIPPED {cls.__qualname__}: pip install -r {requirements}", file=sys.stderr)
            if "CI" in os.environ:
                raise ModuleNotFoundError("spaCy is required here")
            raise unittest.SkipTest("spaCy is not installed")

    def prepare(self, module, text, name, *flags):
        out = self.path(name)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            module.run(["--text", self.path("text", text), "--out", out, "--force", *flags])
        return read(out), said.getvalue()

    def test_the_fixture_is_what_the_script_makes(self):
        text = read(os.path.join(FIXTURES, "agreement.txt"))
        made, said = self.prepare(prepare_agreement, text, "out.jsonl", "--lines")
        self.assertEqual(made, read(os.path.join(FIXTURES, "agreement.jsonl")))
        self.assertRegex(said, "1  left out: under 10 words")

    def test_spans_and_forms_are_those_of_the_texts(self):
        for line in map(json.loads, read(os.path.join(FIXTURES, "agreement.jsonl")).splitlines()):
            texts = [(line["clean_text"], line["clean_verbs"], line["verb_spans"])]
            if counterfactual := line.get("counterfactual"):
                texts.append(tuple(counterfactual[key] for key in ("text", "verbs", "verb_spans")))
                self.assertEqual(counterfactual["verbs"], line["corr_verbs"])
            for text, verbs, spans in texts:
                self.assertEqual([text[start:end] for start, end in spans], verbs)

    def test_the_page_shows_what_the_script_makes(self):
        blocks = read(os.path.join(TOOLS, "..", "docs", "data.md")).split("```")[1::2]
        shown = dict(block.split("\n", 1) for block in blocks)
        made, _ = self.prepare(prepare_agreement, shown["txt"], "out.jsonl", "--lines")
        self.assertEqual(made, shown["jsonl"])

    def test_running_text_is_split(self):
        text = """A heading

        The keys to the old cabinet are on the table
        near the door. The author of the books writes about a
        town near the sea. And then something that goes on and on without a"""
        made, said = self.prepare(prepare_agreement, text, "out.jsonl")
        shown = [json.loads(line)["clean_text"] for line in made.splitlines()]
        self.assertEqual(shown, [
            "The keys to the old cabinet are on the table near the door.",
            "The author of the books writes about a town near the sea.",
        ])  # fmt: skip
        self.assertIn("1  left out: no full stop", said)

    def test_sentences_of_occupations(self):
        text = "\n".join([
            "The surgeon said that he was tired after the long operation.",
            "The nurse washed her hands before the patient came in.",
            "The baker and the nurse said that she was very tired today.",
            "A lawyer lost his papers on the way to the court.",
            "The manager asked the cleaner whether she had seen the keys.",
            "Mary told the teacher that she had lost the keys again.",
            "The doctor looked at her for a long time without words.",
            "The pilots said that he was not on board last night.",
        ])  # fmt: skip
        made, said = self.prepare(prepare_bias, text, "out.csv", "--lines")
        rows = list(csv.DictReader(io.StringIO(made)))
        self.assertEqual([(row["profession"], row["g"]) for row in rows], [
            ("surgeon", "he"), ("lawyer", "his"),
        ])  # fmt: skip
        for row in rows:
            tokens = eval(row["tokens"], {})
            self.assertEqual(tokens[int(row["g_first_index"])], row["g"])
        self.assertIn("2  left out: several occupations", said)

    def test_text_without_use_leaves_no_file(self):
        with self.assertRaisesRegex(corpus.InputError, "no sentence is of use"):
            self.prepare(prepare_bias, "Nothing here.", "out.csv")
        self.assertFalse(os.path.exists(self.path("out.csv")))


if __name__ == "__main__":
    unittest.main()
