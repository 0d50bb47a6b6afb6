"""The commands that benchmark, report and inspect."""
