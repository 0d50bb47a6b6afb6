"""The commands that train, evaluate and check agents."""
