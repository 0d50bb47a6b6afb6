"""The 25 how-tos of the built-in world: a task and its three steps, in order."""

from typing import Final

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
