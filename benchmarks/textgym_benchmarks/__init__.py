"""Benchmarks of TextGym: speed as ratios in one run."""
