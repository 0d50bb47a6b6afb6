"""One training: the loop, its folder, its settings, and what is measured."""
