"""Finds sentences about somebody with an occupation and a pronoun for them, for the task `bias`.

A sentence is of use where the pronoun can only be that person's: it is the only one with a gender,
comes after the occupation, and nobody else is named. docs/data.md tells what is left out.
"""

import csv

import corpus
import english

PRONOUNS = {"he": "Male", "him": "Male", "his": "Male", "himself": "Male",
            "she": "Female", "her": "Female", "herself": "Female"}  # fmt: skip

OCCUPATIONS = set(
    """accountant actor actuary administrator advisor adviser agent analyst anesthesiologist
    announcer apprentice architect artist assistant astronaut astronomer athlete attendant attorney
    auctioneer auditor author bailiff baker banker barber bartender bassist beautician biologist
    blacksmith boss bookkeeper breeder broker builder butcher buyer candidate captain caretaker
    carpenter cartographer cashier ceo chef chemist chief chiropractor choreographer cleaner clerk
    clinician coach collector colonel columnist commander composer conductor constable consultant
    contractor cook cop coroner counselor courier critic curator dancer dealer dean decorator
    dentist deputy designer detective developer dietitian diplomat director dishwasher dispatcher
    distributor diver doctor dressmaker driver drummer economist editor educator electrician
    employee engineer engraver entertainer entrepreneur examiner executive explorer farmer
    firefighter fisher florist fundraiser gardener general geologist glazier governor guard guide
    guitarist hairdresser hairstylist headmaster historian housekeeper hunter hygienist illustrator
    inspector instructor interpreter investigator investor jailer janitor jeweler journalist judge
    jockey laborer landlord laundress lawyer lecturer legislator librarian lieutenant lifeguard
    machinist magician magistrate maid manager manufacturer marshal mathematician mayor mechanic
    merchant midwife miner minister mortician mover musician nanny naturopath negotiator notary
    novelist nurse nutritionist officer official operator optician optometrist organizer painter
    paralegal paramedic pathologist pediatrician performer pharmacist philosopher phlebotomist
    photographer physician physicist physiologist pianist pilot planner player plumber poet
    politician porter preacher president priest principal prisoner producer professor programmer
    prosecutor psychiatrist psychologist publisher rancher rapper realtor receptionist recruiter
    referee reporter researcher sailor salesperson scholar scientist sculptor secretary senator
    sergeant server sheriff shopkeeper singer skater soldier specialist spokesperson statistician
    stylist student superintendent supervisor surgeon surveyor swimmer tailor teacher technician
    teller therapist trader trainer translator treasurer trooper tutor umpire undertaker usher vendor
    veterinarian violinist waiter warden weaver welder worker writer""".split()
)
# Other words for people, to whom the pronoun might belong; and words that tell the gender.
PEOPLE = set(
    """adult aunt baby bachelor bishop boy boyfriend bride brother brother-in-law child client
    colleague comrade cousin customer dad daughter defendant duchess duke enemy father female fellow
    fiance fiancee friend gentleman girl girlfriend god grandfather grandmother groom guest guy heir
    hero heroine husband infant kid king lad lady lord lover maiden male mama man mate mom monk
    monarch mother mum neighbor neighbour nephew niece nun opponent owner papa parent partner passenger
    patient pregnant person pope prince princess queen relative resident rival saint sister son
    stranger suspect teenager uncle victim visitor widow widower wife witness woman youth actress
    businessman businesswoman chairman chairwoman congressman congresswoman countess empress emperor
    goddess hostess policeman policewoman salesman saleswoman spokesman spokeswoman stewardess
    waitress one someone somebody everyone everybody anyone anybody nobody""".split()
)

PLURALS = {english.plural_noun(occupation) for occupation in OCCUPATIONS}
OTHERS = PEOPLE | {english.plural_noun(person) for person in PEOPLE}
# What a name that isn't a person's may belong to, in spaCy's words.
NOT_PERSONS = {
    "DATE", "EVENT", "FAC", "GPE", "LANGUAGE", "LAW", "LOC", "NORP", "ORG", "PRODUCT", "WORK_OF_ART",
}  # fmt: skip


def find(sentence):
    """A sentence's occupation and pronoun; or None and why it is of no use."""
    words = [token for token in sentence if not token.is_space]
    pronouns = [token for token in words if token.lower_ in {*PRONOUNS, "hers"}]
    jobs = [token for token in words if token.lower_ in OCCUPATIONS | PLURALS and token.pos_ != "VERB"]
    if not pronouns:
        return None, "no pronoun with a gender"
    if len(pronouns) > 1:
        return None, "several pronouns with a gender"
    if not jobs:
        return None, "no occupation"
    if len(jobs) > 1:
        return None, "several occupations"
    [pronoun], [job] = pronouns, jobs
    if any(token.lower_ in OTHERS for token in words):
        return None, "somebody else, or a word that tells the gender"
    if any(token.pos_ == "PROPN" and token.ent_type_ not in NOT_PERSONS for token in words):
        return None, "a name"
    if pronoun.lower_ == "hers" or job.i > pronoun.i:
        return None, "the pronoun before the occupation, or `hers`"
    if job.lower_ in PLURALS or job.tag_ != "NN" or job.dep_ in ("compound", "amod", "nmod", "conj", "attr"):
        return None, "the occupation is no single person"
    if not any(child.dep_ in ("det", "poss") for child in job.children):
        return None, "the occupation is no single person"
    if pronoun.lower_ == "him" or pronoun.lower_ == "her" and pronoun.dep_ != "poss":
        return None, "an object, which is mostly somebody else"
    if any(token.is_quote for token in sentence.doc[job.i : pronoun.i]):
        return None, "a quotation mark between occupation and pronoun"
    return (job, pronoun), None


def row(sentence, job, pronoun):
    """A row of BUG's table, with the columns that the task reads."""
    words = [token for token in sentence if not token.is_space]
    return [
        sentence.text,
        python_list(token.text for token in words),
        job.lower_,
        pronoun.text,
        words.index(job),
        words.index(pronoun),
        PRONOUNS[pronoun.lower_],
    ]


COLUMNS = ["sentence_text", "tokens", "profession", "g", "profession_first_index", "g_first_index",
           "predicted gender"]  # fmt: skip


def python_list(words):
    """A Python list literal in which only backslashes and quotes are escaped."""
    quoted = (word.replace("\\", "\\\\").replace("'", "\\'") for word in words)
    return "[" + ", ".join(f"'{word}'" for word in quoted) + "]"


def table(file):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    return writer.writerow


def run(arguments):
    options = corpus.parser(__doc__.splitlines()[0]).parse_args(arguments)
    if not options.out.endswith(".csv"):
        raise corpus.InputError(f"{options.out}: the task reads BUG's table; let it end in .csv")

    def rows(nlp, counts):
        for sentence in corpus.sentences(options.text, options.lines, nlp, counts):
            found, reason = find(sentence)
            if reason:
                counts[f"left out: {reason}"] += 1
            else:
                yield row(sentence, *found)

    corpus.prepare(options, ["tagger", "parser", "ner"], rows, table)


if __name__ == "__main__":
    corpus.main(run)
