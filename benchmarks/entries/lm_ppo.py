"""The unit of the leaderboard: LM PPO at a learning rate of 5e-4."""

ENTRY = {
    "agent": "lm-ppo",
    "settings": {"learning_rate": 5e-4},
    "author": "TextGym",
    "date": "2026-11-27",
    "description": "PPO with a critic and an exact KL",
}
