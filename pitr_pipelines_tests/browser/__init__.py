"""What a user does in Dagster's pages, done in a real browser. `make test-browser` runs it."""
