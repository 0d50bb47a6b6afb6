"""One right solution of every exercise, for teachers: the module of chapter N is chNN, a function for each."""
