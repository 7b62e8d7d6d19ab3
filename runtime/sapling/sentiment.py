"""Short reviews and whether they are positive or negative.

Knows: a lexicon of praise and blame, review templates, and the ways to ask for a verdict.
Must not know: tokenization or training."""

from __future__ import annotations

from random import Random

from .sample import FINISH, Chat, Phrases, Piece, Sample, Split, draw, system, words

ITEMS = words(
    "movie film book restaurant hotel phone game song show laptop headphones coffee pizza service album concert "
    "camera car app novel play soup burger museum tour course lesson chair bed blender watch shirt shoes trip "
    "flight beach series documentary vacuum keyboard tablet toy bag lamp"
)
ASPECTS = words(
    "acting story plot music food staff room battery screen sound price quality design service picture ending taste "
    "location view bed breakfast writing cast atmosphere support delivery packaging comfort speed"
)
GOOD = words(
    "great wonderful excellent amazing fantastic good lovely brilliant superb perfect delightful beautiful charming "
    "outstanding impressive enjoyable delicious fun terrific marvelous pleasant nice awesome incredible friendly "
    "helpful funny touching moving clever fresh clean comfortable fast reliable solid stunning magnificent exciting "
    "fascinating thrilling elegant refreshing flawless gorgeous splendid remarkable exceptional satisfying "
    "hilarious engaging captivating heartwarming cozy tasty smooth bright crisp memorable inspiring"
)
BAD = words(
    "bad terrible awful horrible boring poor dull disappointing weak slow ugly dirty rude broken cheap annoying "
    "dreadful disgusting stale cold noisy confusing predictable useless worthless painful mediocre bland lazy "
    "stupid ridiculous messy unpleasant uncomfortable unreliable overpriced tedious lifeless flat clumsy "
    "forgettable tasteless miserable pathetic appalling shameful sloppy faulty greasy smelly cramped unwatchable "
    "unreadable frustrating laughable depressing shoddy flimsy"
)
LOVE = ("loved", "really enjoyed", "adored", "really liked", "was very happy with", "was delighted by", "enjoyed")
HATE = ("hated", "really disliked", "regret", "could not stand", "was very unhappy with", "was let down by", "disliked")
PRAISE = (
    "I would recommend it to everyone.",
    "I will come back.",
    "Highly recommended.",
    "Worth every penny.",
    "I want to see it again.",
    "Five stars.",
    "A real pleasure.",
    "I am so glad I chose it.",
    "My whole family loved it.",
    "It made my day.",
    "I can't wait to use it again.",
    "Best purchase of the year.",
    "It made me smile.",
    "Thank you so much!",
    "I laughed a lot.",
)
BLAME = (
    "I would not recommend it to anyone.",
    "I will never come back.",
    "Avoid it.",
    "A waste of money.",
    "I never want to see it again.",
    "One star.",
    "A real disappointment.",
    "I am sorry I chose it.",
    "My whole family hated it.",
    "It ruined my day.",
    "I want my money back.",
    "Worst purchase of the year.",
    "It made me angry.",
    "Never again!",
    "I fell asleep.",
)
# {g} is a word of the verdict's side, {b} of the other side, {v} a verb of its side, {w} of the other.
REVIEWS = Phrases(
    (
        "The {i} was {g}.",
        "I {v} this {i}.",
        "I {v} the {a}, and the {c} was {g} too.",
        "The {a} was {g} and the {c} was {g2}.",
        "What a {g} {i}!",
        "This {i} is {g}, {g2} and {g3}.",
        "A {g} {i} with {g2} {a}.",
        "{g}! The {a} is {g2}.",
        "The {i} was so {g} that I told my friends.",
        "I {v} every minute of this {i}.",
        "It is a {g} {i}.",
        "Everything about the {i} was {g}, from the {a} to the {c}.",
        "The {i} is not {b}, it is {g}.",
        "I expected something {b}, but the {i} was {g}.",
        "At first I thought it was {b}, but in the end it was {g}.",
        "I bought this {i} last week. The {a} is {g}.",
        "My friend said it was {b}, but I {v} it.",
        "{a}: {g}. {c}: {g2}.",
        "the {i} was {g}",
        "Really {g} {a}, {g2} {c}.",
        "We went there on Sunday. The {a} was {g} and I {v} the {c}.",
        "Such a {g} {i}, I {v} it.",
    ),
    (
        "I have to say that the {i} was {g}.",
        "The {a} of this {i} is {g} and I {v} it.",
        "{g} {a} and a {g2} {c}, that is all I can say.",
        "Yesterday I tried this {i}, and it was {g}.",
        "People said the {i} was {b}, but it was {g}.",
        "Honestly, I {v} the {i}.",
    ),
)
ASK = Phrases(
    (
        "Is this review positive or negative?\n{r}",
        "What is the sentiment of this review?\n{r}",
        "Classify the sentiment: {r}",
        "Review: {r}\nIs the sentiment positive or negative?",
        "{r}\n\nIs this positive or negative?",
        'Is the following text positive or negative? "{r}"',
        "Sentiment of: {r}",
        "Decide whether the review is positive or negative.\nReview: {r}",
        "Label this as positive or negative: {r}",
        "Read the review and give its sentiment.\n\n{r}",
        "Review: {r}\nSentiment?",
        "Text: {r}\nAnswer positive or negative.",
    ),
    (
        'Tell me the sentiment of this review: "{r}"',
        "Here is a review: {r}\nWould you call it positive or negative?",
        "How does the writer feel, positive or negative?\n\n{r}",
        "Review: {r}\nGive the sentiment of the review.",
    ),
)
STARTS = Phrases(
    ("Sentiment:", "The sentiment is", "The review is", "Answer:", "This review is", "The sentiment of the review is"),
    ("The sentiment of this review is", "Verdict:"),
)


def review(rng: Random, split: Split, positive: bool) -> str:
    """One to three sentences on one side."""
    good, bad, love, hate, close = (GOOD, BAD, LOVE, HATE, PRAISE) if positive else (BAD, GOOD, HATE, LOVE, BLAME)
    words = rng.sample(good, 3)
    a, c = rng.sample(ASPECTS, 2)
    item = draw(rng, split, ITEMS, 0.05)
    if rng.random() < 0.12:
        degree = rng.choice(("not ", "not at all ", "not very ", "never ")) + rng.choice(bad)
        text = rng.choice(("The {i} was {g}.", "The {a} is {g}.", "This is {g}.")).format(i=item, a=a, g=degree)
    else:
        text = REVIEWS.pick(rng, split).format(
            i=item,
            a=a,
            c=c,
            g=words[0],
            g2=words[1],
            g3=words[2],
            b=rng.choice(bad),
            v=rng.choice(love),
            w=rng.choice(hate),
        )
    if rng.random() < 0.35:
        text = f"{text} {rng.choice(close)}" if rng.random() < 0.7 else f"{rng.choice(close)} {text}"
    elif rng.random() < 0.08:
        text = rng.choice(close)
    return text[0].upper() + text[1:] if rng.random() < 0.8 else text


def chat(rng: Random, split: Split) -> Sample:
    talk = Chat(system(rng, split, 0.2))
    for _ in range(rng.choice((1, 2, 3, 4, 5, 6))):
        positive = rng.random() < 0.5
        label = "positive" if positive else "negative"
        talk.user(ASK.pick(rng, split).format(r=review(rng, split, positive)))
        roll = rng.random()
        if roll < 0.35:
            talk.assistant(f" {label}", (label,), prefix=STARTS.pick(rng, split))
        elif roll < 0.4:
            talk.assistant(label, (label,), prefix=STARTS.pick(rng, split) + " ")
        else:
            talk.assistant(label, (label,))
    return talk.sample("sentiment")


def completion(rng: Random, split: Split) -> Sample:
    """The few-shot form, also with no example before it."""
    item, verdict = rng.choice(
        (("Review:", "Sentiment:"), ("Review:", "Sentiment:"), ("Text:", "Sentiment:"), ("Input:", "Label:"))
    )
    lead = rng.choice(
        ("", "", "Decide whether each review is positive or negative.\n\n", "Classify the sentiment.\n\n")
    )
    gap = rng.choice(("", "\n"))
    quote = '"' if rng.random() < 0.15 else ""
    spaced = rng.random() < 0.15
    pieces: list[Piece] = []
    count = rng.choice((1, 2, 3, 4, 6, 8))
    for i in range(count):
        positive = rng.random() < 0.5
        label = "positive" if positive else "negative"
        text = review(rng, split, positive)
        pieces.append(Piece(f"{lead}{item} {quote}{text}{quote}\n{verdict}{' ' if spaced else ''}"))
        pieces.append(Piece(("" if spaced else " ") + label + "\n" + ("" if i + 1 < count else FINISH), True, (label,)))
        lead = gap
    return Sample("sentiment_few_shot", tuple(pieces))
