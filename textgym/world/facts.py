"""The 96 facts of the built-in world: six relations over sixteen towns, people and animals."""

import random
from dataclasses import dataclass

from textgym.world.names import PEOPLE, RIVERS, TOWNS, WORLD_SEED, words

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


_RNG = random.Random(WORLD_SEED + 1)
FACTS = tuple(fact for relation in RELATIONS for fact in draw_facts(relation, _RNG))
