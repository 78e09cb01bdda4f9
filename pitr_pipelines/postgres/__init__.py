"""Everything that talks to or runs a PostgreSQL server."""
