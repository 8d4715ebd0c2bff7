"""Annotates the present-tense verbs of English text for the task `agreement`.

docs/data.md describes the file that it writes, and what it leaves out.
"""

import collections

import corpus
import english

PRESENT = {"VBZ": True, "VBP": False}  # Whether it is singular.
NOUNS = {"NN": True, "NNP": True, "NNS": False, "NNPS": False}
SUBJECTS = {"nsubj", "nsubjpass", "expl"}
# Places in a sentence where no verb stands: a word there was taken for one.
NOT_OF_A_VERB = {
    "amod", "appos", "attr", "compound", "dative", "det", "dobj", "nmod", "npadvmod", "nsubj",
    "nsubjpass", "nummod", "oprd", "pobj", "poss", "punct",
}  # fmt: skip


class Verb:
    """A verb whose number shows: its text (with the n of "n't"), its subject, its other form."""

    def __init__(self, token):
        self.token = token
        after = token.nbor() if token.i + 1 < len(token.doc) else None
        negated = after is not None and after.lower_ in ("n't", "n’t")
        self.text = token.text + (after.text[0] if negated else "")
        self.span = (token.idx, token.idx + len(self.text))
        self.past = token.tag_ == "VBD"
        self.singular = token.lower_ == "was" if self.past else PRESENT[token.tag_]
        self.subject = subject_of(token)
        self.flipped = english.flip_verb(self.text, token.lemma_, self.singular)

    def why_not(self, first):
        """Why it can't be used, if so; `first` is its sentence's first word."""
        token, doc = self.token, self.token.doc
        if token == first:
            return "first in its sentence"
        if token.dep_ in NOT_OF_A_VERB:
            return "no verb by its place"
        after = doc[token.i + 1] if token.i + 1 < len(doc) else None
        if hyphenated(doc[token.i - 1], token) or after is not None and hyphenated(token, after):
            return "part of a hyphenated word"
        if self.flipped is None or not self.text.lstrip("'’").isalpha():
            return "other form unknown"
        return None


def hyphenated(left, right):
    return not left.whitespace_ and "-" in left.text + right.text


def shows_number(token):
    return token.tag_ in PRESENT or token.tag_ == "VBD" and token.lower_ in ("was", "were")


def subject_of(verb):
    """The word a verb agrees with; None where the parse has none."""
    head = verb.head if verb.dep_ in ("aux", "auxpass") else verb
    while not any(child.dep_ in SUBJECTS for child in head.children):
        if head.dep_ != "conj" or head.head.pos_ not in ("VERB", "AUX"):
            return None
        head = head.head
    subject = next(child for child in head.children if child.dep_ in SUBJECTS)
    if subject.dep_ == "expl":
        return next((child for child in head.children if child.dep_ == "attr"), None)
    if head.dep_ == "relcl" and subject.tag_ in ("WDT", "WP"):
        return head.head
    return subject


def attractors(verb):
    """Nouns of the other number between a verb and the subject before it."""
    if verb.subject is None:
        return []
    between = verb.token.doc[verb.subject.i + 1 : verb.token.i]
    return [
        token
        for token in between
        if NOUNS.get(token.tag_) == (not verb.singular) and token.dep_ != "compound"
    ]


def flip_subject(noun, verbs):
    """The edits that give a noun, what determines it and its verbs the other number; or why not."""
    if noun is None:
        return None, "no subject found"
    if noun.tag_ not in ("NN", "NNS"):
        return None, "the subject is no common noun"
    if noun.dep_ == "conj" or any(child.dep_ == "conj" for child in noun.children):
        return None, "the subject is coordinated"
    if any(verb.token.i < noun.i for verb in verbs):
        return None, "the subject is after its verb"
    singular = NOUNS[noun.tag_]
    if any(verb.singular != singular for verb in verbs):
        return None, "subject and verb don't agree"
    edits = [(word_span(noun), english.flip_noun(noun.text, noun.lemma_, singular))]
    edits += [(verb.span, verb.flipped) for verb in verbs]
    before = [child for child in noun.children if child.i < noun.i]
    determiners = [
        child
        for child in before
        if child.dep_ in ("det", "nummod", "predet") or child.lower_ in english.TO_SINGULAR
    ]
    if not determiners and not any(child.dep_ == "poss" for child in before):
        return None, "the subject has no determiner"
    for word in determiners:
        simple = word.dep_ != "predet" and not any(True for _ in word.children)
        other = english.flip_determiner(word.text, word.tag_ == "CD", singular) if simple else None
        edits.append((word_span(word), other))
    if any(other is None for _, other in edits):
        return None, "the subject's other number is unknown"
    return edits, None


def word_span(token):
    return (token.idx, token.idx + len(token.text))


def replace(text, edits):
    """The text with its edits made, and where each replacement stands in it."""
    pieces, spans, at, length = [], {}, 0, 0
    for (start, end), other in sorted(edits):
        # "I've" becomes "I has": a word of its own.
        gap = " " if start and text[start - 1].isalnum() and other[:1].isalnum() else ""
        pieces += [text[at:start], gap, other]
        length += start - at + len(gap)
        spans[(start, end)] = (length, length + len(other))
        length += len(other)
        at = end
    return "".join([*pieces, text[at:]]), spans


def annotate(sentence, counts):
    """A line of the task's file from one of spaCy's sentences; None where it has no verb of use."""
    first = next(token for token in sentence if not token.is_space)
    every = [Verb(token) for token in sentence if shows_number(token)]
    verbs = []
    for verb in every:
        if verb.past:
            continue
        reason = verb.why_not(first)
        if reason:
            counts[f"verbs left out: {reason}"] += 1
        else:
            verbs.append(verb)
    if not verbs:
        counts["left out: no verb of use"] += 1
        return None
    counts["verbs"] += len(verbs)
    start, text = sentence.start_char, sentence.text

    def spans(tokens):
        return [[begin - start, end - start] for begin, end in tokens]

    flipped, _ = replace(text, within(start, [(verb.span, verb.flipped) for verb in verbs]))
    line = {
        "clean_text": text,
        "corr_text": flipped,
        "clean_verbs": [verb.text for verb in verbs],
        "corr_verbs": [verb.flipped for verb in verbs],
        "verb_spans": spans(verb.span for verb in verbs),
        "subject_spans": [
            verb.subject and spans([word_span(verb.subject)])[0] for verb in verbs
        ],
        "attractor_spans": [spans(map(word_span, attractors(verb))) for verb in verbs],
    }
    edits, reason = flip_subjects(verbs, every)
    if reason:
        counts[f"no counterfactual: {reason}"] += 1
        return line
    counts["counterfactuals"] += 1
    other, moved = replace(text, within(start, edits))
    places = [moved[tuple(span)] for span in line["verb_spans"]]
    line["counterfactual"] = {
        "text": other,
        "verbs": [other[begin:end] for begin, end in places],
        "verb_spans": [list(place) for place in places],
    }
    return line


def within(start, edits):
    """Edits of a document as edits of its sentence that begins at `start`."""
    return [((begin - start, end - start), other) for (begin, end), other in edits]


def flip_subjects(verbs, every):
    """The edits that give the subject of each of `verbs` the other number; or why not."""
    of_subject = collections.defaultdict(list)
    for verb in every:
        of_subject[verb.subject].append(verb)
    edits = {}
    for subject in dict.fromkeys(verb.subject for verb in verbs):
        found, reason = flip_subject(subject, of_subject[subject])
        if reason:
            return None, reason
        edits.update(found)
    return list(edits.items()), None


def run(arguments):
    options = corpus.parser(__doc__.splitlines()[0]).parse_args(arguments)

    def lines(nlp, counts):
        for sentence in corpus.sentences(options.text, options.lines, nlp, counts):
            line = annotate(sentence, counts)
            if line:
                yield line

    corpus.prepare(options, ["tagger", "parser", "lemmatizer"], lines, corpus.json_lines)


if __name__ == "__main__":
    corpus.main(run)
