"""Tabular control: one row of action values for each visited state, identified by the state's tokens."""
