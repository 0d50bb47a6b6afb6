"""Stable-Baselines3 and sb3-contrib, unmodified, on TextGym: environments, features and agents."""
