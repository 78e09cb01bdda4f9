"""Restore: plan, fetch, recover, verify."""
