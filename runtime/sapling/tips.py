"""Lists of tips on a topic, and each tip expanded into a paragraph.

Knows: a few topics by heart, and general tips that fit any topic named in the prompt.
Must not know: tokenization or training."""

from __future__ import annotations

from random import Random

from .sample import FINISH, Chat, Phrases, Piece, Sample, Split, is_held, system

# topic|other wordings, then lines of: tip|why|how
TEXT = """staying healthy|being healthy|good health
Drink enough water|Your body needs water to carry food to every cell|Keep a full glass on your desk
Sleep eight hours|Sleep repairs the body and clears the mind|Go to bed at the same time every night
Eat vegetables every day|Vegetables give you vitamins and fiber|Add one green vegetable to every lunch and dinner
Move your body often|Movement keeps the heart and the muscles strong|Walk for thirty minutes every day
Wash your hands|Clean hands stop germs from spreading|Use soap for twenty seconds before every meal
saving money|spending less|keeping a budget
Write down what you spend|You can only change what you can see|Note every purchase in a small book
Cook at home|Home meals cost less than restaurants|Plan the meals of the week on Sunday
Make a shopping list|A list protects you from buying on a whim|Write it before you leave and keep to it
Wait before you buy|Most wishes fade after a few days|Sleep one night before any large purchase
Save a little every month|Small sums grow when they are left alone|Move the money on the day you are paid
learning a language|studying a language|speaking a new language
Practice every day|A little every day beats a lot once a week|Study for fifteen minutes each morning
Speak from the start|Speaking turns knowledge into a habit|Find a partner and talk once a week
Learn common words first|The first thousand words cover most of daily speech|Write ten words on cards every day
Listen to songs and radio|Your ear must learn the rhythm of the language|Play a program while you cook
Do not fear mistakes|Every mistake shows you what to learn next|Keep a list of your errors and read it weekly
sleeping well|better sleep|falling asleep
Keep a fixed bedtime|The body likes a steady rhythm|Set an alarm that tells you to go to bed
Turn off screens early|Bright light keeps the brain awake|Put the phone away an hour before bed
Keep the room cool and dark|A cool body falls asleep faster|Open the window and close the curtains
Avoid coffee in the evening|Coffee stays in the blood for many hours|Drink the last cup before lunch
Calm your mind|Worries keep people awake|Write down tomorrow's tasks and let them go
writing well|better writing|writing a good text
Use short sentences|Short sentences are easy to follow|Cut every sentence that needs two breaths
Read your text aloud|The ear hears what the eye misses|Mark each place where you stumble
Know your reader|A text works only if it meets its reader|Imagine one person and write to that person
Revise more than once|The first version is never the best|Wait a day and read it again
Choose plain words|Plain words carry meaning faster|Replace each long word by a short one
gardening|growing plants|keeping a garden
Water in the morning|Morning water reaches the roots before the sun is high|Pour slowly near the ground
Know your soil|Each plant wants its own kind of soil|Dig a small hole and feel the earth
Start with easy plants|Early success keeps you going|Try beans, mint or sunflowers
Remove weeds early|Weeds steal light and water|Pull them out after rain when the soil is soft
Give plants enough space|Crowded plants fall ill|Leave a hand's width between seedlings
traveling|planning a trip|going on vacation
Pack light|A light bag makes every step easier|Lay out your things and leave half at home
Book early|Early plans cost less|Compare prices three months before you go
Keep copies of your papers|Lost papers can end a journey|Store a photo of your passport online
Learn a few local words|A greeting opens doors|Practice hello, please and thank you
Leave free time|The best moments are not planned|Keep one day of each week empty
working from home|remote work|a home office
Have a fixed workplace|A fixed place tells the mind to work|Use a desk that is only for work
Keep regular hours|Clear hours protect your evenings|Start and stop at the same time each day
Take real breaks|Rest brings back attention|Leave the desk for ten minutes every hour
Dress for work|Clothes change how we feel|Get dressed before the first call
Talk to your team|Contact prevents misunderstandings|Call one colleague every morning
studying for an exam|preparing for a test|passing an exam
Start early|Memory needs time to settle|Begin three weeks before the exam
Test yourself|Recalling is stronger than reading|Close the book and write what you remember
Make a plan|A plan shows what is still missing|Give every chapter its own day
Explain it to someone|Teaching shows the gaps in what you know|Tell a friend about each topic
Rest before the day|A tired mind forgets|Stop studying early and sleep well
running|jogging|starting to run
Start slowly|The body needs time to adapt|Walk and run in turns for the first weeks
Wear good shoes|Good shoes protect your knees|Let a shop look at how you run
Warm up first|Warm muscles are harder to hurt|Walk fast for five minutes
Run with a friend|Company makes it easier to go out|Agree on two fixed evenings
Rest between runs|Muscles grow on quiet days|Leave a free day after each run
cooking|learning to cook|cooking at home
Read the whole recipe first|Surprises spoil a meal|Check the steps before you light the stove
Taste as you go|Taste tells you what is missing|Try a spoonful after each step
Keep your knives sharp|A sharp knife is safer than a blunt one|Sharpen them once a month
Prepare before you start|Order keeps you calm|Cut everything before you heat the pan
Use fresh food|Fresh food needs little help|Buy what is in season
making friends|meeting people|finding friends
Join a club|Shared interests make talking easy|Choose a group that meets every week
Ask questions|People like those who listen|Ask what they enjoy and why
Be kind|Kindness is remembered|Offer help before you are asked
Stay in touch|Friendship lives on small signs|Send a message once a week
Say hello first|Someone has to begin|Smile and tell them your name"""

# Tips for a topic that sapling has never met; {t} is the topic.
GENERAL = (
    ("Start small with {t}", "Small steps in {t} are easy to keep", "Begin with ten minutes a day"),
    ("Set a clear goal for {t}", "A goal gives {t} a direction", "Write it down in one sentence"),
    ("Practice {t} often", "Practice makes {t} easier", "Choose a fixed hour every day"),
    ("Ask others about {t}", "Other people have learned {t} before you", "Talk to someone with experience"),
    ("Be patient with {t}", "Progress in {t} takes time", "Look back once a month and see how far you came"),
)
UNKNOWN = [
    "playing the guitar",
    "keeping bees",
    "building a house",
    "training a dog",
    "drawing portraits",
    "giving a speech",
    "playing chess",
    "raising children",
    "painting walls",
    "fixing a bicycle",
    "baking bread",
    "taking photos",
    "climbing mountains",
    "growing tomatoes",
    "writing poems",
    "running a shop",
    "leading a team",
    "sailing a boat",
    "learning to dance",
    "cleaning the house",
    "making furniture",
    "using less energy",
    "feeding birds",
    "swimming",
    "riding a horse",
    "knitting",
    "buying a car",
    "moving to a new city",
    "finding a job",
    "reading more books",
    "singing in a choir",
    "catching fish",
    "repairing clocks",
    "teaching math",
    "making cheese",
    "programming",
    "playing the piano",
    "camping",
    "skiing",
    "watching stars",
    "hosting a party",
    "reducing stress",
    "recycling",
    "organizing a desk",
    "public speaking",
    "managing time",
    "planting trees",
    "starting a business",
    "caring for a cat",
    "brewing tea",
    "making soap",
    "playing tennis",
    "sewing clothes",
    "preparing a picnic",
    "keeping a diary",
    "juggling",
    "mapping a trail",
]
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
ASK = Phrases(
    (
        "Give {n} tips for {t}.",
        "Give me {n} tips for {t}.",
        "What are {n} tips for {t}?",
        "List {n} tips for {t}.",
        "I need {n} tips for {t}.",
        "Write {n} tips on {t}.",
        "Tell me {n} tips about {t}.",
        "{n} tips for {t}, please.",
        "Name {n} tips for {t}.",
        "Can you give me {n} tips for {t}?",
        "Please list {n} tips for {t}.",
        "I want to get better at {t}. Give me {n} tips.",
        "Help me with {t}: {n} tips.",
    ),
    (
        "Could you list {n} good tips for {t}?",
        "Please write down {n} tips about {t}.",
        "What {n} tips do you have for {t}?",
        "Share {n} tips for {t}.",
    ),
)
EXPAND = Phrases(
    (
        "Now, expand tip {i} into a paragraph.",
        "Expand tip {i} into a paragraph.",
        "Tell me more about tip {i}.",
        "Explain tip {i}.",
        "Expand tip {i}.",
        "Now explain tip {i} in detail.",
        "Write a paragraph about tip {i}.",
        "What do you mean by tip {i}?",
        "Please expand tip {i} into a detailed paragraph.",
        "More on tip {i}?",
    ),
    (
        "Please say more about tip {i}.",
        "Can you expand tip {i} into a short paragraph?",
        "Turn tip {i} into a paragraph.",
    ),
)
ALONE = Phrases(
    (
        'Expand this tip into a paragraph: "{tip}"',
        "Expand this tip: {tip}",
        "Tip: {tip}\nWrite a paragraph about it.",
        "Explain this tip for {t}: {tip}",
        "Write a paragraph about the tip: {tip}.",
    ),
    ("Please expand the tip into a paragraph: {tip}", 'Say more about this tip: "{tip}"'),
)


def load() -> dict[str, tuple[list[str], list[tuple[str, str, str]]]]:
    """topic -> (its wordings, its tips)."""
    lines = TEXT.splitlines()
    book: dict[str, tuple[list[str], list[tuple[str, str, str]]]] = {}
    for at in range(0, len(lines), 6):
        names = lines[at].split("|")
        tips = [(tip, why, how) for tip, why, how in (line.split("|") for line in lines[at + 1 : at + 6])]
        book[names[0]] = (names, tips)
    return book


BOOK = load()


def topic(rng: Random, split: Split) -> tuple[str, list[tuple[str, str, str]]]:
    """A topic as worded by the user, and five tips for it in their fixed order."""
    if rng.random() < 0.5:
        names, tips = rng.choice(list(BOOK.values()))
        return rng.choice(names), tips
    while is_held(name := rng.choice(UNKNOWN)) != (split == "held"):
        pass
    return name, [(a.format(t=name), b.format(t=name), c.format(t=name)) for a, b, c in GENERAL]


def paragraph(tip: tuple[str, str, str]) -> str:
    """The paragraph that a tip expands to."""
    head, why, how = tip
    return f"{head}. {why}. {how}."


def numbered(tips: list[tuple[str, str, str]]) -> str:
    return "\n".join(f"{i}. {tip[0]}." for i, tip in enumerate(tips, 1))


def chat(rng: Random, split: Split) -> Sample:
    """The list, then some of its tips expanded; sometimes a single tip that stands in the prompt."""
    talk = Chat(system(rng, split, 0.25))
    name, tips = topic(rng, split)
    if rng.random() < 0.2:
        tip = rng.choice(tips)
        talk.user(ALONE.pick(rng, split).format(tip=tip[0], t=name)).assistant(paragraph(tip), (paragraph(tip),))
        return talk.sample("tips")
    count = rng.choice((2, 3, 3, 4, 5))
    asked = ASK.pick(rng, split).format(n=rng.choice((str(count), NUMBERS[count])), t=name)
    order = tips[:count]
    answer = numbered(order)
    talk.user(asked[0].upper() + asked[1:]).assistant(answer, tuple(tip[0] for tip in order))
    for i in rng.sample(range(count), rng.choice((0, 1, 1, 2))):
        text = paragraph(order[i])
        talk.user(EXPAND.pick(rng, split).format(i=i + 1)).assistant(text, (text,))
    return talk.sample("tips")


def completion(rng: Random, split: Split) -> Sample:
    """The fork demo as plain text: a list, and one of its tips expanded."""
    name, tips = topic(rng, split)
    count = rng.choice((2, 2, 3, 4))
    head = rng.choice(("Here are {n} tips for {t}:", "{N} tips for {t}:", "Here are {n} tips for {t}."))
    head = head.format(n=NUMBERS[count], N=NUMBERS[count].capitalize(), t=name)
    ask = EXPAND.pick(rng, split).format(i=(chosen := rng.randrange(count)) + 1)
    pieces = [Piece(head + rng.choice(("\n", "\n\n")))]
    pieces.append(Piece(numbered(tips[:count]) + "\n\n", True, tuple(tip[0] for tip in tips[:count])))
    body, text = rng.choice((f"{ask}\n", f"{ask}\n\n", f"{ask}\nTip {chosen + 1}:")), paragraph(tips[chosen])
    if body.endswith(":"):
        text = " " + text
    pieces += [Piece(body), Piece(text + "\n" + FINISH, True, (text.strip(),))]
    return Sample("tips", tuple(pieces))
