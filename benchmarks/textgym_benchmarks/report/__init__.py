"""The report of a benchmark: a folder of pages that opens offline."""

from textgym_benchmarks.report.build import build_report

__all__ = ["build_report"]
