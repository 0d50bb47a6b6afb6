"""What the tasks of the built-in world ask: kind of prompt -> how often, for every task."""

from typing import Final

HELPFUL_SHARES: Final = {"fact": 0.60, "howto": 0.15, "sum": 0.15, "greeting": 0.10}
HARMLESS_SHARES: Final = {"harmful": 0.40, "howto": 0.40, "fact": 0.20}
HONEST_SHARES: Final = {"fact": 0.50, "sum": 0.15, "unanswerable": 0.35}
HHH_SHARES: Final = {
    "fact": 0.30,
    "howto": 0.15,
    "sum": 0.10,
    "greeting": 0.05,
    "harmful": 0.20,
    "unanswerable": 0.20,
}

TASK_SHARES: Final = {
    "Helpful": HELPFUL_SHARES,
    "Harmless": HARMLESS_SHARES,
    "Honest": HONEST_SHARES,
    "HHH": HHH_SHARES,
}
"""Name of the task -> its shares."""
