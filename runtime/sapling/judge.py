"""Short essays judged along named dimensions, by signs on their surface.

Knows: what marks clarity, evidence, originality and imagery in an essay, and how a judgement is worded.
Must not know: tokenization or training."""

from __future__ import annotations

from random import Random

from .sample import Chat, Phrases, Sample, Split, city, invent, number, system

TOPICS = [
    "school uniforms",
    "public parks",
    "city traffic",
    "reading",
    "music lessons",
    "recycling",
    "night buses",
    "local markets",
    "free museums",
    "home cooking",
    "team sports",
    "old libraries",
    "remote work",
    "bicycle lanes",
    "summer camps",
    "tall buildings",
    "pocket money",
    "phone rules",
    "long holidays",
    "river ferries",
    "street art",
    "early lessons",
    "small shops",
    "wind power",
    "community gardens",
]
# A clause carries no sign by itself; alone it is a neutral sentence.
CLAUSES = Phrases(
    (
        "many people talk about {t}",
        "I have an opinion on {t}",
        "some like {t} and some do not",
        "people in {c} know about {t}",
        "my neighbor {x} thinks about {t} too",
        "we should talk about {t}",
        "{x} wrote to me about {t}",
        "I like {t}",
        "in {c} they have {t}",
        "the question of {t} comes up now and then",
        "we need {t}",
        "{t} is open to everyone",
        "{t} can help families",
        "children enjoy {t}",
        "the town of {c} wants more of it",
        "nobody should be afraid of {t}",
        "{t} makes life better",
        "{x} disagrees with me on {t}",
        "it is a matter of taste",
        "{t} has friends and enemies",
        "I changed my mind about {t}",
        "there is much to learn here",
        "we can try it for a year",
        "my sister never liked {t}",
    ),
    (
        "everyone in {c} wants {t}",
        "{t} deserves a chance",
        "I once asked {x} about {t}",
        "{t} is good for {c}",
        "we must not give up on {t}",
        "this is my view of {t}",
        "it matters to me",
        "{t} brings joy to people",
    ),
)
# dimension -> the signs it looks for, each with ways to put it around a clause {k}.
SIGNS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "clarity": (
        ("first", ("first, {k}", "first of all, {k}")),
        ("second", ("second, {k}",)),
        ("therefore", ("therefore {k}", "{k}, and therefore {l}")),
        ("for example", ("for example, {k}", "{k}, for example")),
        ("in conclusion", ("in conclusion, {k}",)),
        ("because", ("{k} because {l}", "because {k}, {l}")),
        ("in other words", ("in other words, {k}",)),
        ("as a result", ("as a result, {k}", "{k}, and as a result {l}")),
        ("finally", ("finally, {k}",)),
        ("however", ("however, {k}", "{k}; however, {l}")),
    ),
    "evidence": (
        ("percent", ("{n} percent say that {k}", "for {n} percent of us, {k}")),
        ("study", ("a study says that {k}", "in a study from {c} we read that {k}")),
        ("survey", ("in a survey, {n} people said that {k}", "a survey shows that {k}")),
        ("data", ("the data from {c} shows that {k}", "data tells us that {k}")),
        ("according to", ("according to {x}, {k}", "{k}, according to {x}")),
        ("experiment", ("an experiment in {c} proves that {k}", "in an experiment, {k}")),
        ("statistics", ("the statistics say that {k}", "statistics from {c} show that {k}")),
        ("report", ("a report by {x} says that {k}", "in the report of {x}, {k}")),
    ),
    "originality": (
        ("at the end of the day", ("at the end of the day, {k}", "{k} at the end of the day")),
        ("think outside the box", ("we must think outside the box, {k}", "{k} if you think outside the box")),
        ("needless to say", ("needless to say, {k}",)),
        ("time flies", ("time flies, and {k}", "{k}, and time flies")),
        ("since the dawn of time", ("since the dawn of time, {k}", "{k} since the dawn of time")),
        ("only time will tell", ("only time will tell whether {k}", "{k}, but only time will tell")),
        ("easier said than done", ("{k}, which is easier said than done", "it is easier said than done, but {k}")),
        ("better late than never", ("better late than never, {k}", "{k}, better late than never")),
    ),
    "imagery": (
        ("like a river", ("like a river, {k}", "{k}, like a river")),
        ("golden", ("in golden light {k}", "{k} on golden mornings")),
        ("whisper", ("the trees whisper that {k}", "I hear a whisper that {k}")),
        ("scent", ("with the scent of rain, {k}", "{k}, and the scent of roses stays")),
        ("like a bird", ("free like a bird, {k}", "{k}, light like a bird")),
        ("shimmering", ("by the shimmering lake {k}", "{k} under shimmering stars")),
        ("velvet", ("in the velvet night {k}", "{k}, soft as velvet")),
        ("thunder", ("loud as thunder, {k}", "{k}, and the thunder rolls")),
    ),
}
# How many signs give which score and grade; a cliche lowers where the other signs raise.
SCORES = ((3, "C"), (6, "B"), (9, "A"))
NOUN = {"clarity": "linking words", "evidence": "sources or figures", "originality": "cliches", "imagery": "images"}
ASK = Phrases(
    (
        "Evaluate the following essay on {d}.\n\n{e}",
        "Judge the {d} of this essay.\n\n{e}",
        "Essay: {e}\n\nEvaluate the essay on {d}.",
        "Please evaluate this essay on {d}: {e}",
        "{e}\n\nHow good is the {d} of this essay?",
        "Evaluate the essay based on its {d}.\n\nEssay: {e}",
        "Rate the {d} of the essay.\n{e}",
        "Read the essay and judge its {d}.\n\nEssay:\n{e}",
    ),
    (
        "Please judge this essay on {d}.\n\n{e}",
        "Here is an essay.\n\n{e}\n\nWhat do you think of its {d}?",
        "Assess the {d} of the following essay.\n\n{e}",
    ),
)
AGAIN = Phrases(
    (
        "Evaluate based on the following dimension: {d}.",
        "Now judge its {d}.",
        "And its {d}?",
        "Evaluate the essay on {d}.",
        "What about {d}?",
        "Now rate the {d}.",
        "Evaluate based on the following dimension: {d}. End your judgment with the score.",
    ),
    ("Please evaluate the {d} too.", "How about its {d}?", "Next dimension: {d}."),
)
GIVE = Phrases(
    (
        "Please judge this essay.\n\n{e}",
        "Here is an essay.\n\n{e}",
        "Please carefully read this essay:\n\n{e}",
        "Essay: {e}",
    ),
    ("I wrote an essay.\n\n{e}", "Look at this essay:\n\n{e}"),
)


def essay(rng: Random, split: Split) -> tuple[str, dict[str, list[str]]]:
    """An essay of three to nine sentences, and the signs it holds, per dimension, in the order of the text."""
    topic = rng.choice(TOPICS)
    chosen: list[tuple[str, str, str]] = []
    for dimension, signs in SIGNS.items():
        for sign, forms in rng.sample(signs, rng.choice((0, 1, 2))):
            chosen.append((dimension, sign, rng.choice(forms)))
    chosen += [("", "", "{k}")] * rng.choice((0, 1, 2, 3))
    rng.shuffle(chosen)
    found: dict[str, list[str]] = {dimension: [] for dimension in SIGNS}
    sentences = []
    for dimension, sign, form in chosen or [("", "", "{k}")]:
        line = form.replace("{k}", CLAUSES.pick(rng, split)).replace("{l}", CLAUSES.pick(rng, split))
        line = line.format(t=topic, c=city(rng, split), x=invent(rng, split), n=number(rng))
        sentences.append(line[0].upper() + line[1:] + ".")
        if dimension:
            found[dimension].append(sign)
    return " ".join(sentences), found


def score(dimension: str, signs: list[str]) -> tuple[int, str]:
    count = min(len(signs), 2)
    return SCORES[2 - count if dimension == "originality" else count]


def judgement(dimension: str, signs: list[str]) -> str:
    """What was found, then the score and the grade."""
    points, grade = score(dimension, signs)
    listed = ", ".join(f'"{sign}"' for sign in signs)
    seen = f"The essay has {len(signs)} of the {NOUN[dimension]} I look for: {listed}."
    if not signs:
        seen = f"The essay has no {NOUN[dimension]}."
    return f"{seen} Score: {points}. Grade: {grade}."


def overall(scores: list[int]) -> int:
    """The mean, rounded half up."""
    return (2 * sum(scores) + len(scores)) // (2 * len(scores))


def chat(rng: Random, split: Split) -> Sample:
    """One essay judged along one to four dimensions, sometimes with an overall score at the end."""
    talk = Chat(system(rng, split, 0.2))
    text, found = essay(rng, split)
    dimensions = rng.sample(list(SIGNS), rng.choice((2, 3, 3, 4)))
    for i, dimension in enumerate(dimensions):
        answer = judgement(dimension, found[dimension])
        points, grade = score(dimension, found[dimension])
        if i == 0 and rng.random() < 0.3:
            talk.user(GIVE.pick(rng, split).format(e=text) + "\n\n" + AGAIN.pick(rng, split).format(d=dimension))
        else:
            talk.user((AGAIN if i else ASK).pick(rng, split).format(d=dimension, e=text))
        roll = rng.random()
        if roll < 0.2:
            talk.assistant(f" {points}", (str(points),), prefix="Score:")
        elif roll < 0.3:
            talk.assistant(f" {grade}", (grade,), prefix="Grade:")
        else:
            talk.assistant(answer, (answer,))
    if len(dimensions) > 1 and rng.random() < 0.4:
        total = overall([score(d, found[d])[0] for d in dimensions])
        talk.user(
            rng.choice(("Give an overall score.", "What is the overall score?", "Summarize and give an overall score."))
        )
        talk.assistant(f"Overall score: {total}.", (str(total),))
    return talk.sample("judge")


def summary(rng: Random, split: Split) -> Sample:
    """The join of the demo: judgements made elsewhere stand in the prompt, and an overall score is asked for."""
    _, found = essay(rng, split)
    dimensions = rng.sample(list(SIGNS), rng.choice((2, 3, 3, 4)))
    lines = "\n".join(f"{d}: {judgement(d, found[d])}" for d in dimensions)
    total = overall([score(d, found[d])[0] for d in dimensions])
    ask = rng.choice(
        ("Give an overall score.", "What is the overall score?", "Summarize these judgments and give an overall score.")
    )
    lead = rng.choice(("Here are the judgments:\n", "Judgments:\n", "Below are the judgments of an essay.\n"))
    return (
        Chat(system(rng, split, 0.2))
        .user(f"{lead}{lines}\n\n{ask}")
        .assistant(f"Overall score: {total}.", (str(total),))
        .sample("judge")
    )
