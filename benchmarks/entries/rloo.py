"""RLOO at a learning rate of 5e-4."""

ENTRY = {
    "agent": "rloo",
    "settings": {"learning_rate": 5e-4},
    "author": "TextGym",
    "date": "2026-11-27",
    "description": "REINFORCE leave-one-out in groups of four, with k1 in the return",
}
