"""The fixed sentences of the built-in world: courtesy, dodges, rudeness, refusals and filler."""

from typing import Final

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
