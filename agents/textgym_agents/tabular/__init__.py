"""Tabular control: one row of action values for every state that was met, found by the state's tokens."""
