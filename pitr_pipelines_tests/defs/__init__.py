"""Dagster's definitions: what is promised there, mostly without a server."""
