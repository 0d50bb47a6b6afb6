"""Exact gradients on small tasks, and the bias and variance of estimators against them."""
