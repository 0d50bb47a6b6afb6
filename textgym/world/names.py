"""Seeded, pronounceable names of the built-in world: towns, rivers and people."""

import random

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


_RNG = random.Random(WORLD_SEED)
TOWNS = draw_names(TOWN_STARTS, TOWN_ENDS, _RNG)
RIVERS = draw_names(RIVER_STARTS, RIVER_ENDS, _RNG)
PEOPLE = draw_names(PERSON_STARTS, PERSON_ENDS, _RNG)
PROPER_NAMES = frozenset(TOWNS + RIVERS + PEOPLE)
