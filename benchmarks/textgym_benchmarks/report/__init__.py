"""The report of a benchmark: a folder of pages that opens offline."""
