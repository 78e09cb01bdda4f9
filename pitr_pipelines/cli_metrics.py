"""`pitr metrics`: what matters, for Prometheus."""

from __future__ import annotations

import click


@click.command()
def metrics() -> None:
    """Stub."""
