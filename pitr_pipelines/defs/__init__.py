"""Dagster's view of it all: the only room in which Dagster is known. It decides nothing of its own."""
