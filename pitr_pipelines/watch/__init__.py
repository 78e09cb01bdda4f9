"""The watch: what is wrong, found before it matters, and told once to whom it concerns.

    look (a server, the storage) -> judge (pure) -> lives of incidents (pure) -> tell (one message)

It needs no Dagster: `pitr watch` does what Dagster's sensor does, on the same state in storage.
"""
