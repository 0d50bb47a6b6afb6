"""Exact answers on small token MDPs: the prefix tree, its optimum, and the values of any policy."""
