"""`python -m pitr_pipelines_tests.oracle`: the randomized oracle for as long as asked.

Round after round, each with a story and a server of its own, on each major in turn. Ends with the
first failure, which says how to play that round again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from pitr_pipelines.postgres.account import server_account
from pitr_pipelines_tests.oracle.compare import OracleFailure
from pitr_pipelines_tests.oracle.run import Round, play
from pitr_pipelines_tests.servers import (
    MAJORS,
    ServerFactory,
    SettingsMaker,
    Templates,
    make_reachable_directory,
    remove_directory,
)


def main() -> int:
    """Play rounds until the time is over; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pitr_pipelines_tests.oracle", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="for how long rounds are begun (60)")
    parser.add_argument("--rounds", type=int, help="end after so many rounds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--major", type=int, action="append", choices=MAJORS, help="may be repeated; all")
    parser.add_argument("--events", type=int, default=20, help="events of a story (20)")
    parser.add_argument("--targets", type=int, default=48, help="targets of a round (48)")
    parser.add_argument("--segment-size-mb", type=int, help="of WAL segments; by default drawn from the seed")
    parser.add_argument("--no-twins", action="store_true", help="leave abandoned timelines out")
    asked = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("PG") or name == "PITR_CONFIG"]:
        del os.environ[name]
    majors = asked.major or MAJORS
    begun = time.monotonic()
    rounds = checked = 0
    templates_directory = make_reachable_directory()
    try:
        templates = Templates(templates_directory, server_account(None))
        while time.monotonic() - begun < asked.minutes * 60 and rounds != asked.rounds:
            number = Round(
                asked.seed + rounds,
                majors[rounds % len(majors)],
                asked.events,
                asked.targets,
                asked.segment_size_mb,
                twins=not asked.no_twins,
            )
            directory = make_reachable_directory()
            factory = ServerFactory(directory, templates)
            try:
                checked += play(number, factory, SettingsMaker(directory), _say)
            except OracleFailure as failure:
                _say(f"FAILED: {failure}\nwhat it left is in {directory}")
                return 1
            finally:
                factory.stop_all()
            remove_directory(directory)
            rounds += 1
    finally:
        remove_directory(templates_directory)
    minutes = (time.monotonic() - begun) / 60
    _say(f"{rounds} rounds, {checked} checks, {minutes:.1f} minutes: all as it should be")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
