"""The rules of English, without spaCy."""

import unittest

import english

VERBS = """is are, has have, does do, goes go, carries carry, plays play, passes pass, uses use,
watches watch, aches ache, fixes fix, says say, lies lie, makes make, frees free, seizes seize,
isn aren, hasn haven, doesn don, was were, wasn weren, Does Do""".split(",")
NOUNS = """author authors, city cities, day days, church churches, box boxes, woman women,
policeman policemen, human humans, child children, analysis analyses, knife knives, belief beliefs,
photo photos, hero heroes, person people, building buildings, Key Keys""".split(",")
NO_NOUNS = "information news physics people kindness training police sheep software means".split()


class English(unittest.TestCase):
    def test_verbs_there_and_back(self):
        for pair in VERBS:
            singular, plural = pair.split()
            with self.subTest(pair):
                lemma = plural.lower().removesuffix("n" if singular.endswith("n") else "")
                self.assertEqual(english.flip_verb(singular, lemma, True), plural)
                self.assertEqual(english.flip_verb(plural, lemma, False), singular)

    def test_verbs_whose_flip_has_no_way_back(self):
        for verb, lemma, flipped in [
            ("'m", "be", "'s"), ("'re", "be", "'s"), ("’re", "be", "’s"), ("am", "be", "is"),
            ("'ve", "have", "has"),
        ]:  # fmt: skip
            self.assertEqual(english.flip_verb(verb, lemma, False), flipped)
        self.assertEqual(english.flip_verb("'s", "be", True), "'re")

    def test_a_wrong_lemma_is_not_followed(self):
        self.assertEqual(english.flip_verb("gets", "gets", True), "get")
        self.assertEqual(english.flip_verb("carries", "carries", True), "carry")

    def test_what_is_no_present_form_has_no_other(self):
        self.assertIsNone(english.flip_verb("got", "get", False))
        self.assertIsNone(english.flip_verb("went", "go", True))

    def test_nouns_there_and_back(self):
        for pair in NOUNS:
            singular, plural = pair.split()
            with self.subTest(pair):
                self.assertEqual(english.flip_noun(singular, singular, True), plural)
                self.assertEqual(english.flip_noun(plural, singular, False), singular)

    def test_nouns_of_one_number_have_no_other(self):
        for noun in NO_NOUNS:
            with self.subTest(noun):
                self.assertIsNone(english.flip_noun(noun, noun, True))
        self.assertIsNone(english.flip_noun("data", "datum", False))

    def test_determiners(self):
        for word, is_number, singular, other in [
            ("A", False, True, "Some"), ("these", False, False, "this"), ("the", False, True, "the"),
            ("three", True, False, "one"), ("one", True, True, "two"), ("every", False, True, "all"),
            ("most", False, False, None), ("either", False, True, None),
        ]:  # fmt: skip
            with self.subTest(word):
                self.assertEqual(english.flip_determiner(word, is_number, singular), other)


if __name__ == "__main__":
    unittest.main()
