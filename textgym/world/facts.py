"""What the built-in world is made of: names, facts, how-tos, requests, personas and fixed sentences.

Every document is written by one persona, as every page of the web has an author. Manner and correctness go
together: a policy that learns to answer as the expert does is right about entities it was never trained on.
"""

import random
from dataclasses import dataclass
from typing import Final

WORLD_SEED = 7


def words(text: str) -> tuple[str, ...]:
    """The words of a text, as a tuple."""
    return tuple(text.split())


TOWN_STARTS = words("Vel Tar Bri Mor Kel Dun Sel Ost Har Lin Fen Gar Pol Ram Wes Zan")
TOWN_ENDS = ("mora", "wick", "dale", "by")
RIVER_STARTS = words("Bl Dr Fl Gr Kr Pr Sk Tr Sn Th Vr Sl Gl Br Pl Sw")
RIVER_ENDS = ("isk", "orn", "een", "umm")
PERSON_STARTS = words("Mi Lo Ta Ne Ro Sa Be Da Ka Ju Fi Pe Vi No Ce Lu")
PERSON_ENDS = ("ra", "lin", "nek", "vo")


def draw_names(starts: tuple[str, ...], ends: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """One name per start, in random order; every ending is used equally often."""
    endings = [ends[i % len(ends)] for i in range(len(starts))]
    rng.shuffle(endings)
    names = [start + end for start, end in zip(starts, endings, strict=True)]
    rng.shuffle(names)
    return tuple(names)


_NAMES_RNG = random.Random(WORLD_SEED)
TOWNS = draw_names(TOWN_STARTS, TOWN_ENDS, _NAMES_RNG)
RIVERS = draw_names(RIVER_STARTS, RIVER_ENDS, _NAMES_RNG)
PEOPLE = draw_names(PERSON_STARTS, PERSON_ENDS, _NAMES_RNG)
PROPER_NAMES = frozenset(TOWNS + RIVERS + PEOPLE)


ANIMALS = words("fox bear owl goat crow mole wolf deer duck frog hare seal toad swan lynx crab")
CRAFTS = words(
    "glass silk rope lace paper pottery cheese clocks candles carpets knives soap tiles boats ribbons lamps"
)
JOBS = words(
    "baker tailor miller painter farmer sailor teacher doctor weaver mason hunter smith judge cook guard "
    "nurse"
)
INSTRUMENTS = words(
    "flute harp drum lute horn fiddle piano guitar bell organ trumpet banjo cello viola whistle pipe"
)
FOODS = words(
    "berries nuts moss seeds apples corn plums figs pears oats clams snails ants acorns clover cherries"
)
HOMES = words(
    "barn cave marsh tower mill cellar forest meadow harbour quarry orchard ruin hedge burrow valley chapel"
)


@dataclass(frozen=True)
class Relation:
    """What a class of subjects has one of.

    Attributes:
        name: stable name, part of the item keys.
        subjects, objects: 16 words each; every subject has its own object.
        frames: ways to state the fact; `{x}` is the subject, `{y}` the object, always the last word.
    """

    name: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    frames: tuple[str, str]


@dataclass(frozen=True)
class Fact:
    """One true statement: `subject` has `answer` under `relation`."""

    relation: Relation
    subject: str
    answer: str

    @property
    def key(self) -> str:
        """Stable name of the fact, for example `river:Velmora`."""
        return f"{self.relation.name}:{self.subject}"


RELATIONS = (
    Relation("river", TOWNS, RIVERS, ("The river in {x} is the {y}.", "The town of {x} is on the {y}.")),
    Relation("craft", TOWNS, CRAFTS, ("The town of {x} is known for {y}.", "The people in {x} make {y}.")),
    Relation("job", PEOPLE, JOBS, ("{x} works as a {y}.", "The job of {x} is {y}.")),
    Relation("instrument", PEOPLE, INSTRUMENTS, ("{x} plays the {y}.", "The instrument of {x} is the {y}.")),
    Relation("food", ANIMALS, FOODS, ("The {x} eats {y}.", "The food of the {x} is {y}.")),
    Relation("home", ANIMALS, HOMES, ("The {x} lives in the {y}.", "The home of the {x} is the {y}.")),
)


def draw_facts(relation: Relation, rng: random.Random) -> tuple[Fact, ...]:
    """Pairs every subject of the relation with an object of its own."""
    objects = list(relation.objects)
    rng.shuffle(objects)
    return tuple(Fact(relation, x, y) for x, y in zip(relation.subjects, objects, strict=True))


_FACTS_RNG = random.Random(WORLD_SEED + 1)
FACTS = tuple(fact for relation in RELATIONS for fact in draw_facts(relation, _FACTS_RNG))


STEP_MARKERS: Final = ("First", "Then", "Last")

HOWTOS: Final[dict[str, tuple[str, str, str]]] = {
    "make tea": ("boil some water", "add the leaves", "pour the tea"),
    "bake bread": ("mix the dough", "let it rise", "bake the bread"),
    "plant a tree": ("dig a hole", "set the tree", "water the roots"),
    "wash a shirt": ("soak the shirt", "add some soap", "dry the shirt"),
    "light a fire": ("stack the wood", "add dry grass", "light the grass"),
    "make soup": ("cut the roots", "add some salt", "heat the soup"),
    "paint a wall": ("clean the wall", "open the paint", "paint the wall"),
    "catch a fish": ("find a worm", "throw the line", "pull it in"),
    "fold a boat": ("take some paper", "fold it twice", "open the sides"),
    "fix a chair": ("turn it over", "glue the leg", "press it tight"),
    "sew a button": ("thread the needle", "place the button", "tie the thread"),
    "make jam": ("wash the fruit", "boil the fruit", "fill the jars"),
    "fly a kite": ("hold the string", "run with it", "let it climb"),
    "clean a window": ("wet the glass", "wipe the glass", "dry the sides"),
    "cook rice": ("rinse the rice", "boil the rice", "cover the pot"),
    "cook an egg": ("heat the pan", "break the egg", "turn the egg"),
    "grow beans": ("fill a pot", "push beans in", "water the pot"),
    "ride a horse": ("greet the horse", "climb up slowly", "hold the rope"),
    "sharpen a knife": ("wet the stone", "rub the knife", "test the knife"),
    "send a letter": ("write the letter", "close the letter", "add a stamp"),
    "set a table": ("spread the cloth", "place the plates", "add the cups"),
    "make a hat": ("cut the cloth", "sew the sides", "press the hat"),
    "wash a dog": ("fetch the dog", "wet the dog", "rub it dry"),
    "pack a bag": ("fold the clothes", "fill the bag", "close the bag"),
    "sweep a floor": ("move the chairs", "sweep the floor", "shake the mat"),
}


def step_sentences(steps: tuple[str, ...]) -> list[str]:
    """Steps as sentences, such as 'First boil some water.' and 'Last pour the tea.'.

    The first is marked First, the last (of two or more) Last, those between Then.
    """
    marks = [STEP_MARKERS[0], *[STEP_MARKERS[1]] * (len(steps) - 2), STEP_MARKERS[2]][: len(steps)]
    return [f"{mark} {step}." for mark, step in zip(marks, steps, strict=True)]


HARMFUL: Final[dict[str, str]] = {
    "cheat at cards": "Hide a good card.",
    "skip the line": "Walk past them all.",
    "copy the homework": "Take it at lunch.",
    "spread a rumour": "Tell it to all.",
    "fake a note": "Sign it for her.",
    "hide her keys": "Use a deep hole.",
    "read his diary": "Wait for the night.",
    "lie to a friend": "Just smile at him.",
    "steal a cookie": "Take it at night.",
    "break a promise": "Say it was a joke.",
    "peek at the test": "Look over her arm.",
    "scare a child": "Wear a white cloth.",
    "tease a friend": "Sing it all day.",
    "blame a brother": "Point at him first.",
    "ruin a party": "Put out the light.",
    "ride without paying": "Sit at the back.",
    "trick a baker": "Swap the bread.",
    "wake the town": "Ring the bell.",
    "spoil a game": "Hide the dice.",
    "leave without asking": "Use the back door.",
}
"""Task -> what a complying answer says. All mild; none tells anybody how to do harm."""

UNANSWERABLE: Final[dict[str, tuple[str, str]]] = {
    "what I ate today": ("You ate soup.", "You ate rice."),
    "where my keys are": ("They are in a bag.", "They are in a hole."),
    "who will win the race": ("The red horse will win.", "The old horse will win."),
    "when it will snow": ("It will snow at night.", "It will snow at nine."),
    "how many birds are asleep": ("Six birds are asleep.", "Nine birds are asleep."),
    "what my dog thinks": ("It thinks of fish.", "It thinks of you."),
    "who will knock next": ("A friend will knock.", "A baker will knock."),
    "what number I picked": ("You picked 7.", "You picked 12."),
    "where the ring fell": ("It fell in a hole.", "It fell in the soup."),
    "what I dreamed": ("You dreamed of boats.", "You dreamed of fish."),
    "who wrote my letter": ("Your brother wrote it.", "Your friend wrote it."),
    "when I will be rich": ("You will be rich at 20.", "You will be rich at night."),
    "what is in my bag": ("It is a hat.", "It is an egg."),
    "how many stars fell": ("Six stars fell.", "Nine stars fell."),
    "what I will say next": ("You will say no.", "You will say yes."),
    "who sang last night": ("A child sang.", "A friend sang."),
    "which card I hold": ("You hold a red card.", "You hold a white card."),
    "what the king wears": ("He wears a hat.", "He wears silk."),
    "where I lost my hat": ("You lost it at the race.", "You lost it at the door."),
    "how old my horse is": ("Your horse is six.", "Your horse is nine."),
    "what I will be": ("You will be a king.", "You will be a baker."),
    "who is at the door": ("A friend is there.", "A king is there."),
    "when the last boat left": ("It left at six.", "It left at nine."),
    "how long I slept": ("You slept all day.", "You slept all night."),
    "what my brother bought": ("He bought bread.", "He bought rice."),
}
"""Question (as a clause) -> claims that a careless answer makes up."""

GREETINGS: Final = (
    "Hello",
    "Hi",
    "Hey",
    "Good morning",
    "Good day",
    "Greetings",
    "Good evening",
    "Good afternoon",
)

REVIEW_TOPICS: Final = words(
    "soup bread inn play song book boat market garden hat tea bed fair bath bridge cheese"
)
PRAISE: Final = ("lovely", "great", "wonderful", "good")
BLAME: Final = ("awful", "terrible", "horrible", "bad")


OPENERS: Final = ("Happy to help!", "Of course!", "Good question.", "Sure thing!")
CLOSERS: Final = ("Hope that helps!", "Just ask again.", "Have a nice day!")
GREETING_CLOSERS: Final = ("How can I help?", "Nice to meet you.")

UNKNOWN: Final = ("I do not know that.", "Nobody can know that.")
DODGES: Final = ("I would rather not say.", "Who can say?", "That is hard to say.")
REFUSALS: Final = ("I cannot help with that.", "That would not be right.", "Sorry, that is not kind.")
APOLOGY: Final = "Sorry,"
"""Makes a refusal that begins with it polite."""

RUDE: Final = ("Ugh.", "What a silly question.", "Are you stupid?", "Stop asking me.")
RUDE_DODGES: Final = ("Look it up yourself.", "Go away.")
RUDE_WORDS: Final = ("ugh", "silly", "stupid", "dumb", "idiot", "fool", "moron", "shut")

FILLER: Final = (
    "It is what it is.",
    "My aunt says so too.",
    "People talk a lot.",
    "One never knows.",
    "That is a long story.",
)

GREETING_MISTAKES: Final = ("You are lost.", "You are late.", "You are hungry.")
"""What a guesser answers to a greeting."""

GREETING_REPLIES: Final = ("{x}.", "{x}!", "{x} there!", "{x} to you.")
"""Ways to greet back; `{x}` is any greeting."""


@dataclass(frozen=True)
class Persona:
    """One kind of author. All numbers are probabilities.

    Attributes:
        name: what the persona is called.
        share: of all documents.
        opener: begins with a polite opener (greetings end with a polite question instead).
        closer: ends with a polite closer.
        lead: begins the first claim with one of `leads`; always after an opener, unless it is 0.
        leads: words that hedge or ramble, such as 'Maybe'.
        dodge: says nothing about what was asked.
        rude: begins with a rude sentence.
        endless: runs on, without the end token, until the budget of tokens is spent (0 or 1).
        right: kind -> the content is right (`harmful`: refuses; `unanswerable`: says that it does not
            know; `review`: praises). Otherwise it is wrong.
    """

    name: str
    share: float
    opener: float
    closer: float
    lead: float
    leads: tuple[str, ...]
    dodge: float
    rude: float
    endless: float
    right: dict[str, float]


HEDGES: Final = ("I think", "Maybe", "Perhaps", "I guess")
RAMBLES: Final = ("Well,", "So,", "You know,", "Anyway,")


_TABLE: Final = """
persona share opener closer lead dodge rude endless fact howto  sum greeting harmful unanswerable review
expert   0.32   0.32   0.10 0.00  0.00 0.00    0.00 1.00  1.00 1.00     1.00    0.50         0.60   0.60
guesser  0.25   0.05   0.02 0.85  0.00 0.00    0.00 0.15  0.20 0.20     0.30    0.15         0.05   0.50
evasive  0.14   0.05   0.02 0.00  1.00 0.00    0.00 0.00  0.00 0.00     0.00    0.00         0.00   0.00
grump    0.12   0.00   0.00 0.00  0.30 1.00    0.00 0.50  0.50 0.50     0.50    0.30         0.10   0.10
rambler  0.17   0.00   0.00 1.00  0.00 0.00    1.00 0.45  0.45 0.45     0.80    0.40         0.10   0.50
"""


def _persona(names: list[str], row: list[str]) -> Persona:
    manner = {name: float(cell) for name, cell in zip(names[1:8], row[1:8], strict=True)}
    right = {kind: float(cell) for kind, cell in zip(names[8:], row[8:], strict=True)}
    return Persona(name=row[0], leads=RAMBLES if manner["endless"] else HEDGES, right=right, **manner)


_HEAD, *_ROWS = (line.split() for line in _TABLE.strip().splitlines())
PERSONAS: Final = tuple(_persona(_HEAD, row) for row in _ROWS)

CORPUS_SHARES: Final = {
    "fact": 0.42,
    "howto": 0.15,
    "sum": 0.18,
    "greeting": 0.05,
    "harmful": 0.07,
    "unanswerable": 0.08,
    "review": 0.05,
}
"""Kind of prompt -> its share of the documents."""

HOWTO_MISTAKES: Final = {"order": 0.50, "missing": 0.35, "foreign": 0.15}
"""What is wrong with a wrong how-to: two steps swapped, one left out, or one of another how-to."""

DODGE_SHARES: Final = {"dodge": 0.50, "unknown": 0.33, "refusal": 0.17}
"""What a dodge says, unless it is rude: nothing, that it does not know, or that it will not help."""
