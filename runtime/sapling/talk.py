"""The rest of a conversation: greetings, plans, ratings, categories, and choosing a tool.

Knows: small talk word for word, word lists per category, and the shape of a plan.
Must not know: tokenization or training."""

from __future__ import annotations

from random import Random

from . import knowledge, react
from .facts import ATTRIBUTES, TABLES
from .sample import FINISH, REAL_NAMES, Chat, Phrases, Piece, Sample, Split, draw, invent, number, system

ME = "I am sapling, a very small language model. I grew inside Branchwork."
# (what the user may say, what sapling says)
SMALL_TALK: tuple[tuple[Phrases, str], ...] = (
    (
        Phrases(
            (
                "Hello",
                "Hello!",
                "Hi",
                "Hi!",
                "hi there",
                "Hey",
                "Good morning",
                "Good day!",
                "hello",
                "Hey there!",
                "Hi.",
            ),
            ("Hello there!", "Hey!", "Good evening!"),
        ),
        "Hello! How can I help you?",
    ),
    (
        Phrases(
            (
                "Who are you?",
                "What are you?",
                "What is your name?",
                "Introduce yourself.",
                "Tell me about yourself.",
                "who are you",
                "Are you a robot?",
                "What model are you?",
                "Your name?",
            ),
            ("What's your name?", "Who am I talking to?", "Please introduce yourself."),
        ),
        ME,
    ),
    (
        Phrases(
            (
                "How are you?",
                "How are you today?",
                "How do you do?",
                "how are you",
                "Are you well?",
                "How is it going?",
            ),
            ("How are you doing?", "And how are you?"),
        ),
        "I am well, thank you. How can I help you?",
    ),
    (
        Phrases(
            ("What can you do?", "How can you help me?", "What are you good at?", "Help", "What do you know?"),
            ("What can you help me with?", "What are you able to do?"),
        ),
        "I can answer simple questions, read tables, judge reviews and essays, write JSON, give tips and use tools.",
    ),
    (
        Phrases(
            ("Thank you", "Thanks", "Thank you!", "Thanks a lot.", "thx", "Great, thanks!", "Thank you very much."),
            ("Many thanks!", "OK, thank you."),
        ),
        "You are welcome.",
    ),
    (
        Phrases(
            ("Bye", "Goodbye", "Good bye!", "See you", "Good night", "bye", "See you later!"),
            ("Bye bye!", "See you soon."),
        ),
        "Goodbye!",
    ),
    (
        Phrases(
            ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke, please."),
            ("Can you tell me a joke?",),
        ),
        "Why did the tree use a computer? It wanted to log in.",
    ),
    (
        Phrases(
            ("Who made you?", "Where do you come from?", "How were you made?", "Who trained you?"),
            ("Who created you?",),
        ),
        "I was grown from generated text on two processor cores, and I ship inside Branchwork.",
    ),
    (
        Phrases(
            ("Write a poem.", "Write a short poem about trees.", "A poem, please.", "Write me a poem about a tree."),
            ("Can you write a poem?",),
        ),
        "A seed fell down, the rain came too,\nA root went deep, a stem came through,\n"
        "It spread its branches, one by one,\nAnd every leaf looked for the sun.",
    ),
    (
        Phrases(
            ("Tell me a story.", "Tell a short story.", "Once upon a time", "A story, please."),
            ("Can you tell me a story?",),
        ),
        "Once upon a time a small tree stood in a dark wood. Every day it grew a little. "
        "After many years it was tall, and birds came to live in its branches.",
    ),
)
CATEGORIES = {
    "fruit": "apple banana pear plum cherry grape orange lemon peach mango melon fig kiwi apricot",
    "animal": "dog cat horse lion tiger eagle shark frog snake rabbit wolf whale cow sheep",
    "color": "red blue green yellow black white purple brown orange pink gray violet",
    "tool": "hammer saw drill wrench shovel axe rake screwdriver ladder chisel pliers",
    "vehicle": "car bus train bicycle truck plane boat ship tram scooter van helicopter",
    "clothing": "shirt jacket hat shoes gloves scarf trousers dress socks coat skirt sweater",
    "furniture": "table chair bed sofa desk shelf wardrobe stool bench cabinet",
    "country": "France Germany Japan Brazil Egypt Canada India Kenya Norway Peru China Italy Spain",
    "vegetable": "carrot potato onion cabbage spinach pea cucumber garlic leek pumpkin celery radish",
    "instrument": "piano guitar violin drum flute trumpet harp cello clarinet organ trombone",
    "sport": "football tennis swimming boxing hockey rowing golf skiing basketball volleyball rugby",
    "weather": "rain snow wind storm fog hail thunder sunshine frost drizzle",
    "number": "one two three four five six seven eight nine ten twelve twenty",
    "job": "baker teacher doctor farmer pilot painter nurse driver lawyer singer judge",
}
SORT = Phrases(
    (
        "Which category fits {w}? {o}",
        "Is {w} one of these: {o}?",
        "Classify the word {w}: {o}",
        "Choose the category of {w} from: {o}.",
        "Categories: {o}\nWord: {w}",
        "To which category does {w} belong? Options: {o}",
        "{w}: {o}?",
        "Put {w} into one of these groups: {o}.",
        "What kind of thing is {w}? {o}?",
        "Which of these is {w}: {o}?",
        "Options: {o}. Which one fits {w}?",
        "Select the best label for {w}: {o}",
        "Word: {w}\nLabels: {o}\nLabel?",
        "Is the word {w} in the group {o}?",
    ),
    ("Pick the right category for {w}: {o}", "What is {w}? Choose from {o}."),
)
GOALS = [
    "clean the kitchen",
    "write a letter",
    "build a shed",
    "learn to swim",
    "plan a party",
    "fix a lamp",
    "paint a wall",
    "plant a tree",
    "open a shop",
    "find a flat",
    "make a salad",
    "train for a race",
    "sell a bike",
    "organize a trip",
    "start a club",
    "bake a cake",
    "repair a fence",
    "write a song",
    "save energy",
    "teach a class",
    "move a piano",
    "wash a car",
    "run a race",
    "print a book",
    "sort old photos",
    "host a dinner",
    "draw a map",
    "feed the chickens",
    "grow tomatoes",
    "catch a train",
    "buy a house",
    "build a raft",
    "study for a test",
    "visit a museum",
    "cook a soup",
    "prepare a talk",
    "mend a coat",
    "record a song",
    "design a poster",
    "choose a school",
]
PLAN = Phrases(
    (
        "Propose a plan to {g}.",
        "Make a plan to {g}.",
        "Write a short plan to {g}.",
        "I want to {g}. Propose a plan.",
        "How would you {g}? Make a plan.",
        "Please generate a high-level plan for solving the following task: {g}.",
        "Plan: {g}",
        "Give me a plan to {g}.",
        "What is a good plan to {g}?",
    ),
    ("Please propose a plan to {g}.", "Could you write a plan to {g}?", "Think of a plan to {g}."),
)
PLANS = (
    "1. Write down what you need to {g}.\n2. Gather everything in one place.\n3. {G} step by step.",
    "1. Ask someone who knows how to {g}.\n2. Choose a day.\n3. {G} and check the result.",
    "1. Set a clear goal.\n2. Split the work to {g} into small steps.\n3. Do one step after the other.",
)
NEXT = (
    (
        (
            "Execute the plan.",
            "Now execute the plan.",
            "The plan looks good! Now, use real numbers and finish.",
            "Carry it out.",
        ),
        "I follow the plan. First I get ready, then I {g}, and at the end I check the result. It is done.",
    ),
    (
        ("Reflect on the result.", "Reflect on your solution.", "Is the plan good?", "What could go wrong?"),
        "The plan to {g} is clear and short. It may take longer than expected, so I would start early.",
    ),
    (
        (
            "Rate the plan from 1 to 10.",
            "Rate your solution on a scale from 1 to 10.",
            "Give the plan a score from 1 to 10.",
        ),
        "I rate it 8 out of 10.",
    ),
)
PICK_TOOL = Phrases(
    (
        "Which tool do you need for this question, {o}?\n{q}",
        "Question: {q}\nWhich tool do you need: {o}?",
        "To answer this question, do you need {o}? {q}",
        "Choose the tool, {o}.\n{q}",
        "Tools: {o}\nQuestion: {q}\nTool?",
        "Would you use {o} here? {q}",
        "{q}\nWhich tool helps: {o}?",
        "I have two tools, {o}. Which one answers this? {q}",
        "Select a tool ({o}) for the question: {q}",
    ),
    ("Which of the tools {o} helps with this question? {q}", "Decide on a tool, {o}: {q}"),
)


def small_talk(rng: Random, split: Split) -> Sample:
    """Greetings and questions about sapling itself, with a fact or a name in between."""
    talk = Chat(system(rng, split, 0.3))
    for _ in range(rng.choice((1, 1, 2, 3, 4, 6))):
        roll = rng.random()
        if roll < 0.7:
            said, answer = rng.choice(SMALL_TALK)
            talk.user(said.pick(rng, split)).assistant(answer, (answer,))
        elif roll < 0.85:
            name = draw(rng, split, REAL_NAMES)
            hello = Phrases(
                ("My name is {x}.", "I am {x}.", "Hello, I am {x}.", "Hi, my name is {x}.", "I'm {x}"),
                ("Hello, my name is {x}.", "Call me {x}."),
            ).pick(rng, split)
            answer = f"Hello {name}! How can I help you?"
            talk.user(hello.format(x=name)).assistant(answer, (name,))
            if rng.random() < 0.6:
                asked = rng.choice(("What is my name?", "Who am I?", "Do you remember my name?", "Say my name."))
                talk.user(asked).assistant(f"Your name is {name}.", (name,))
        else:
            kind = rng.choice(knowledge.KINDS)
            row, attribute = rng.choice(TABLES[kind]), rng.choice(list(ATTRIBUTES[kind]))
            full = knowledge.sentence(kind, attribute, row)
            asked = knowledge.question(rng, split, kind, attribute, row)
            talk.user(asked).assistant(full, (knowledge.value_of(kind, attribute, row),))
    return talk.sample("small_talk")


def options(rng: Random, words: list[str]) -> str:
    """The choices as a list in a sentence."""
    return rng.choice((", ".join(words), ", ".join(words[:-1]) + " or " + words[-1], "/".join(words)))


def choose(rng: Random, split: Split) -> Sample:
    """A word put into one of the categories named, or a tool chosen for a question."""
    talk = Chat(system(rng, split, 0.2))
    for _ in range(rng.choice((2, 3, 4, 5))):
        if rng.random() < 0.6:
            labels = rng.sample(list(CATEGORIES), rng.choice((2, 3, 3, 4)))
            label = rng.choice(labels)
            word = rng.choice(
                [
                    w
                    for w in CATEGORIES[label].split()
                    if not any(w in CATEGORIES[o].split() for o in labels if o != label)
                ]
            )
            asked = SORT.pick(rng, split).format(w=word, o=options(rng, labels))
        else:
            labels = ["calculator", rng.choice(("search engine", "search", "encyclopedia"))]
            label = rng.choice(labels)
            if label == "calculator":
                question = react.problem(rng, split)[0]
            else:
                kind = rng.choice(("country", "element", "book"))
                row, attribute = rng.choice(TABLES[kind]), rng.choice(list(ATTRIBUTES[kind]))
                question = knowledge.question(rng, split, kind, attribute, row)
            rng.shuffle(labels)
            asked = PICK_TOOL.pick(rng, split).format(q=question, o=options(rng, labels))
        talk.user(asked)
        roll = rng.random()
        if roll < 0.3:
            talk.assistant(
                f" {label}", (label,), prefix=rng.choice(("Answer:", "Category:", "I choose", "The answer is", "Tool:"))
            )
        else:
            talk.assistant(label, (label,))
    return talk.sample("choose")


def tool_choice(rng: Random, split: Split) -> Sample:
    """Plain text that names a tool and then writes its input."""
    if rng.random() < 0.5:
        question, steps = react.problem(rng, split)
        tool, then, text = "calculator", rng.choice((". The math expression is", ". The expression is")), steps[0][0]
    else:
        row = rng.choice(TABLES["country"])
        question = knowledge.question(rng, split, "country", "capital", row)
        tool, then, text = "search engine", rng.choice((". The key word to search is", ". The key word is")), row[0]
    pieces = [
        Piece(f"To answer this question: {question}. I need to use a"),
        Piece(f" {tool}", True, (tool,)),
        Piece(then),
        Piece(f" {text}\n{FINISH}", True, (text,)),
    ]
    return Sample("choose", tuple(pieces))


def plan(rng: Random, split: Split) -> Sample:
    """Propose, execute, reflect, rate: the steps of a tree of thought."""
    goal = rng.choice(GOALS)
    talk = Chat(system(rng, split, 0.2))
    # Three proposals differ, so that sampling several branches shows several plans.
    answer = rng.choice(PLANS).format(g=goal, G=goal[0].upper() + goal[1:])
    talk.user(PLAN.pick(rng, split).format(g=goal)).assistant(answer, (goal,))
    for asked, said in NEXT[: rng.choice((0, 1, 2, 3))]:
        talk.user(rng.choice(asked)).assistant(said.format(g=goal), (said.format(g=goal),))
    return talk.sample("plan")


def memory(rng: Random, split: Split) -> Sample:
    """The user states things about themselves, and asks for them turns later."""
    talk = Chat(system(rng, split, 0.2))
    facts = {
        "favorite number": str(number(rng)),
        "favorite word": invent(rng, split).lower(),
        "code": f"{rng.choice('ABCDEFGH')}{number(rng, 2)}",
        "dog's name": invent(rng, split),
        "street": invent(rng, split) + " Street",
    }
    chosen = rng.sample(list(facts), rng.choice((1, 2, 3)))
    for key in chosen:
        said = rng.choice(
            ("My {k} is {v}.", "Remember: my {k} is {v}.", "By the way, my {k} is {v}.", "Note that my {k} is {v}.")
        )
        talk.user(said.format(k=key, v=facts[key])).assistant(
            f"I will remember that your {key} is {facts[key]}.", (facts[key],)
        )
    for key in rng.sample(chosen, len(chosen)):
        asked = rng.choice(("What is my {k}?", "Do you remember my {k}?", "Tell me my {k}.", "My {k}?"))
        talk.user(asked.format(k=key)).assistant(f"Your {key} is {facts[key]}.", (facts[key],))
    return talk.sample("memory")
