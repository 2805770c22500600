"""Heads that turn features and names into masks: `Grounder`."""
