"""The commands of `textgym`, one module each, whose `main` takes the flags as a list of texts."""
