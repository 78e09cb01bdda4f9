"""Promises that only real servers can keep or break."""
