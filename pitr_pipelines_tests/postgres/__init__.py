"""Tests of what talks to or runs a PostgreSQL server."""
