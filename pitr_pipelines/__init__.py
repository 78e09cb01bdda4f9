"""Point-in-time recovery for PostgreSQL, run by Dagster.

Importing this package imports no Dagster: everything outside `definitions.py` and `defs/` works
when Dagster, its database and the UI are gone.
"""

__version__ = "0.1.0"
