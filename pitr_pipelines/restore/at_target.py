"""What a restore does when it has reached its target."""

from __future__ import annotations

from enum import StrEnum

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.restore.verification import Verification


class AtTarget(StrEnum):
    """PostgreSQL's own words for it (recovery_target_action), each in a cluster that is whole and on disk."""

    PROMOTE = "promote"
    """The cluster becomes one of its own, on a new timeline, and can be written to."""
    PAUSE = "pause"
    """It stays in recovery: its server runs, read-only, until a resume promotes it or moves it on."""
    SHUTDOWN = "shutdown"
    """As with pause, but its server does not run."""


def check_keeps_running(at_target: AtTarget, keep_running: bool) -> None:
    """Raise BadRequest if the server is to be left stopped in a way that contradicts `at_target`."""
    if at_target is AtTarget.PAUSE and not keep_running:
        raise BadRequest(
            "a server that is to pause at the target cannot be left stopped",
            remedy="Ask for shutdown at the target: that leaves the same state, with the server stopped.",
        )


def check_can_be_asked(at_target: AtTarget, verification: Verification) -> None:
    """Raise BadRequest if pg_amcheck is asked for where it cannot be: it needs a server that takes writes."""
    if verification.amcheck and at_target is not AtTarget.PROMOTE:
        raise BadRequest(
            f"pg_amcheck cannot be run in a cluster that stays in recovery ({at_target} at the target)",
            remedy="Leave it out here, and run it when the cluster was promoted.",
        )
