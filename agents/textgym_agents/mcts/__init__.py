"""Monte-Carlo tree search over the states of a task, whose transition is known: a token is appended."""
