"""Run a suite: cells, engines' work, progress, and the optima that results are compared with."""
