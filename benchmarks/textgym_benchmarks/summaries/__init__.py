"""The parts of a summary: what is computed from the results of a suite, one file per kind of table or chart."""
