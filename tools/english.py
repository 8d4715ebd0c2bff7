"""Rules of English that need no model: verbs and nouns in both numbers, and what stands before nouns.

A form is None where the rules know none, so that callers leave a word out instead of guessing.
"""

# Present-tense forms that no rule gives. "'ve" has no short form of the third person that shows it
# is "has", so it becomes a word of its own.
SINGULAR_VERBS = {"am": "is", "are": "is", "'m": "'s", "'re": "'s", "have": "has", "'ve": "has"}
PLURAL_VERBS = {"is": "are", "'s": "'re", "has": "have", "does": "do", "goes": "go"}
PAST_VERBS = {"was": "were", "were": "was"}
# Verbs that "n't" follows and whose number shows.
NEGATED_VERBS = {"do", "does", "have", "has", "is", "are", "was", "were"}

IRREGULAR_NOUNS = {
    "analysis": "analyses", "basis": "bases", "calf": "calves", "child": "children",
    "crisis": "crises", "criterion": "criteria", "diagnosis": "diagnoses", "echo": "echoes",
    "foot": "feet", "goose": "geese", "half": "halves", "hero": "heroes",
    "hypothesis": "hypotheses", "knife": "knives", "leaf": "leaves", "life": "lives",
    "loaf": "loaves", "man": "men", "mouse": "mice", "person": "people",
    "nucleus": "nuclei", "phenomenon": "phenomena", "potato": "potatoes", "quiz": "quizzes", "shelf": "shelves",
    "synthesis": "syntheses", "thesis": "theses", "thief": "thieves", "tomato": "tomatoes",
    "tooth": "teeth", "veto": "vetoes", "wife": "wives", "wolf": "wolves", "woman": "women",
}
# Nouns without another number, or with one that means something else.
UNCOUNTABLE_NOUNS = set(
    """accommodation advice aid air aircraft alcohol anger anything attention beauty behavior
    behaviour blood bread business butter cash clothing coffee confidence content corn cotton
    courage damage darkness data dirt dust earth education electricity energy equipment everybody
    everyone everything evidence extent faith fame fish flesh flour food fuel fun furniture garbage gas
    gold grass guidance hair happiness hardware harm health heat heaven help history homework honey
    hope housework humanity humor ice independence information intelligence jewelry justice
    knowledge labor laughter legislation literature logic love luck luggage lunch machinery mail
    majority management mankind math meat media milk minority money mud music nature nobody noise
    none nothing offspring oil one oxygen pain paper peace percent permission pollution poverty power
    progress proof publicity rain rest research respect rice rubbish safety salt sand scenery science
    sea sheep silence silver sky sleep smoke snow soap software soil somebody someone something
    species steam steel stuff sugar sun sunshine support technology tennis time traffic transport
    transportation travel trust truth understanding unemployment violence water wealth weather wheat
    wine wisdom wood wool work world youth
    arms clothes contents customs glasses goods headquarters means news odds outskirts police
    proceeds remains scissors series shorts species thanks trousers""".split()
)
UNCOUNTABLE_ENDINGS = ("ics", "ism", "ness", "ware")
COUNTABLE_ING = {
    "being", "building", "ceiling", "drawing", "evening", "feeling", "finding", "king", "meeting",
    "morning", "painting", "ring", "setting", "spring", "string", "thing", "warning", "wedding",
    "wing",
}

# What stands before a noun, when that changes its number. A word that isn't here allows no change.
UNCHANGED = {"the", "no", "any", "which", "what"}
TO_PLURAL = {"a": "some", "an": "some", "this": "these", "that": "those", "each": "all",
             "every": "all", "another": "other", "one": "two"}
TO_SINGULAR = {"these": "this", "those": "that", "all": "every", "some": "one", "both": "one",
               "several": "one", "many": "one", "few": "one", "other": "another"}


def third_person(verb):
    """The singular of a plural form in lower case: "carry", "carries"."""
    if verb in SINGULAR_VERBS:
        return SINGULAR_VERBS[verb]
    if verb.endswith("y") and verb[-2:-1] not in set("aeiou"):
        return verb[:-1] + "ies"
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + "es"
    return verb + "s"


def plural_verb(verb, lemma):
    """The plural of a singular form in lower case: "carries", "carry".

    No rule tells "uses" from "passes", so the lemma decides where it fits.
    """
    if verb in PLURAL_VERBS:
        return PLURAL_VERBS[verb]
    candidates = [lemma, verb[:-1], verb[:-2]]
    if verb.endswith("ies"):
        candidates.insert(1, verb[:-3] + "y")
    return next((form for form in candidates if form and third_person(form) == verb), None)


def flip_verb(verb, lemma, singular):
    """A verb in its other number: "carries", "carry"; before "n't", "isn", "aren"."""
    plain = verb.lower().replace("’", "'")
    negation = ""
    if plain.endswith("n") and plain[:-1] in NEGATED_VERBS:
        plain, negation = plain[:-1], "n"
    if plain in PAST_VERBS:
        flipped = PAST_VERBS[plain]
    elif singular:
        flipped = plural_verb(plain, lemma.lower())
    elif plain in SINGULAR_VERBS or plain == lemma.lower():
        flipped = third_person(plain)
    else:
        return None  # A past form taken for a present one: "got".
    return None if flipped is None else like(verb, flipped + negation)


def plural_noun(noun):
    """The plural of a singular noun in lower case; None where it has none."""
    if noun in IRREGULAR_NOUNS:
        return IRREGULAR_NOUNS[noun]
    if noun in UNCOUNTABLE_NOUNS or noun in IRREGULAR_NOUNS.values():
        return None
    if noun.endswith(UNCOUNTABLE_ENDINGS):
        return None
    if noun.endswith("ing") and noun not in COUNTABLE_ING:
        return None
    if noun.endswith("man") and noun not in ("human", "german", "roman"):
        return noun[:-3] + "men"
    if noun.endswith("y") and noun[-2:-1] not in set("aeiou"):
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun + "s"


def flip_noun(noun, lemma, singular):
    """A noun in its other number, where the rules lead there and back."""
    lemma = lemma.lower()
    plural = plural_noun(lemma)
    own, other = (lemma, plural) if singular else (plural, lemma)
    if plural is None or noun.lower() != own or noun.lower() in UNCOUNTABLE_NOUNS:
        return None
    return like(noun, other)


def flip_determiner(word, is_number, singular):
    """What stands in a determiner's (or number's) place when its noun changes number, or None."""
    plain = word.lower()
    if plain in UNCHANGED:
        return word
    if singular:
        other = TO_PLURAL.get(plain)
    else:
        other = "one" if is_number and plain != "one" else TO_SINGULAR.get(plain)
    return None if other is None else like(word, other)


def like(word, other):
    """`other` with the capitals and the apostrophe of `word`."""
    if word.startswith("’"):
        other = other.replace("'", "’")
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
