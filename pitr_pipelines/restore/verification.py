"""Verification of a restored cluster, beyond that it reached the target and is consistent.

Page checksums are checked by PostgreSQL's own pg_checksums while the cluster is stopped and its
pages are still in memory; pg_amcheck, on request, looks into every table and index while the server
of the recovery runs. Neither leaves anything behind: the extension that pg_amcheck needs is dropped
again where it was not before.

What is found differs in weight. A page whose checksum is wrong is damage of the copy's files, which
another base backup may not have: the restore fails, and its directory stays marked INCOMPLETE. What
pg_amcheck finds was most likely so in the original at that moment, in which case no other restore is
better, and on the worst night this may be all there is: the restore counts as done, is started as
asked, and its report says `damage`; the command ends with the exit code of a failed recovery all the
same, so that no script takes it for sound.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pitr_pipelines.catalog.drills import CheckResult
from pitr_pipelines.errors import BinariesNotFound, RecoveryFailed
from pitr_pipelines.postgres.account import clean_environment
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.units import show_duration

if TYPE_CHECKING:
    from pitr_pipelines.restore.drill_checks import Copy

PAGES = "pg_checksums"
STEP = "check pages"

_SHOWN = 10
_MIB = 1024 * 1024
# "  42/1234 MB (3%) computed", rewritten in place.
_PROGRESS = re.compile(r"(\d+)/(\d+) MB \(\d+%\) computed")
_BAD = re.compile(r'checksum verification failed in file "(?P<file>[^"]+)", block (?P<block>\d+)')
_BLOCKS = re.compile(r"Blocks scanned:\s+(\d+)")


@dataclass(frozen=True, slots=True)
class Verification:
    """What to look at beyond the target: page checksums where the cluster has them, and pg_amcheck."""

    pages: bool = True
    amcheck: bool = False


def check_pages(
    cluster: Cluster, control: Mapping[str, str], database: str, base: Path, *, report: Report = silent
) -> CheckResult | None:
    """Check every page of a stopped cluster; None if it has no checksums.

    `control` is what pg_controldata says now; `base` is the base backup from which it was restored.
    Raises RecoveryFailed, which names files and blocks, if a page is damaged or the check cannot be
    finished, and BinariesNotFound without pg_checksums.
    Source: https://www.postgresql.org/docs/current/app-pgchecksums.html
    """
    if int(control.get("Data page checksum version", "0")) == 0:
        return None
    began = time.monotonic()
    code, said, complaints = _run(cluster, report)
    bad = [(found["file"], int(found["block"])) for found in _BAD.finditer(complaints)]
    if bad:
        shown = [f"  {_short(file, cluster)}, block {block}" for file, block in bad[:_SHOWN]]
        if len(bad) > _SHOWN:
            shown.append(f"  … and {len(bad) - _SHOWN} more")
        raise RecoveryFailed(
            f"{database} was recovered, but {len(bad)} of its pages are damaged:\n" + "\n".join(shown),
            remedy=f"They were most likely like that when the base backup was taken. Move {base} away (put a "
            "dot in front of its name) and restore again: then the one before it is used. Check the original "
            "with pg_amcheck. If this is all there is, --skip-page-checks restores it as it is.",
        )
    if code != 0:
        raise RecoveryFailed(
            f"{database} was recovered, but its pages could not be checked: {complaints.strip() or said}",
            remedy="Mend what it names, or restore with --skip-page-checks.",
        )
    blocks = _BLOCKS.search(said)
    return CheckResult(
        check=PAGES,
        dbname=None,
        expected="no damage",
        found=f"{blocks[1]} pages, no damage" if blocks else "no damage",
        problem=None,
        took_s=time.monotonic() - began,
    )


def check_lines(pages: CheckResult | None, amcheck: CheckResult | None) -> Iterator[str]:
    """Say in a line each what was looked at."""
    if pages is not None:
        yield f"page checksums: {pages.found} ({show_duration(pages.took_s)})"
    if amcheck is not None and amcheck.problem is None:
        yield f"{amcheck.check}: {amcheck.found} ({show_duration(amcheck.took_s)})"


def note_lines(pages: CheckResult | None, *, wanted: bool) -> Iterator[str]:
    """Say what was not looked at, and why."""
    if pages is None:
        yield (
            "the cluster has no page checksums, so damaged pages cannot be told"
            if wanted
            else "page checksums were not checked, as was asked"
        )


@contextmanager
def unchanged_extensions(copy: Copy, log: Callable[[str], None]) -> Iterator[None]:
    """Drop the extension amcheck after the block from every database that did not have it before.

    Raises psycopg.Error or ServerUnavailable if that does not work.
    """
    before = {dbname: _has_amcheck(copy, dbname) for dbname in _databases(copy)}
    try:
        yield
    finally:
        for dbname, had in before.items():
            if not had and _has_amcheck(copy, dbname):
                _ask(copy, dbname, "DROP EXTENSION amcheck")
                log(f"dropped amcheck from {dbname} again")


def check_amcheck(copy: Copy, cluster: Cluster, *, log: Callable[[str], None], report: Report) -> CheckResult:
    """Run pg_amcheck over every database of a recovered server, and leave nothing behind.

    What it finds is in the result's `problem`. Raises BinariesNotFound without pg_amcheck,
    RecoveryFailed if the server cannot be left as it was.
    """
    # psycopg is slow to import, and only needed here.
    import psycopg

    from pitr_pipelines.errors import ServerUnavailable
    from pitr_pipelines.restore.drill_checks import run_amcheck

    log("running pg_amcheck over every database")
    report(Progress("amcheck", 0, 1, "clusters"))
    try:
        with unchanged_extensions(copy, log):
            result = run_amcheck(copy, cluster.binaries, cluster.account)
    except (ServerUnavailable, psycopg.Error) as error:
        raise RecoveryFailed(
            f"the extension amcheck could not be taken out of {copy.database} again: {error}",
            remedy="Restore without --amcheck, and run pg_amcheck on the restored server.",
        ) from error
    report(Progress("amcheck", 1, 1, "clusters"))
    log(f"{result.check}: {result.problem or result.found}")
    return result


def require(binaries: Binaries, verification: Verification) -> None:
    """Raise BinariesNotFound now rather than after the work, if what is asked for is not installed."""
    for wanted, program in ((verification.amcheck, "pg_amcheck"), (verification.pages, PAGES)):
        if wanted:
            try:
                binaries.program(program)
            except BinariesNotFound as error:
                error.remedy += f" Or restore without what needs {program}."
                raise


def _run(cluster: Cluster, report: Report) -> tuple[int, str, str]:
    """Run pg_checksums; return its exit code and what it said on both channels, progress left out."""
    account = cluster.account
    program = cluster.binaries.reachable_by(account).program(PAGES)
    complaints: list[str] = []
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            [str(program), "--check", "--progress", "-D", str(cluster.data_directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
            env=clean_environment(account),
            user=account.uid if account.switch else None,
            group=account.gid if account.switch else None,
            extra_groups=[] if account.switch else None,
        ) as process,
    ):
        assert process.stderr is not None
        try:
            # Universal newlines: each rewriting of the progress ends a line.
            for line in process.stderr:
                found = _PROGRESS.search(line)
                if found is None:
                    complaints.append(line)
                else:
                    report(Progress(STEP, int(found[1]) * _MIB, int(found[2]) * _MIB))
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        output.seek(0)
        return code, output.read(), "".join(complaints)


def _short(file: str, cluster: Cluster) -> str:
    return file.removeprefix(f"{cluster.data_directory}/")


def _databases(copy: Copy) -> list[str]:
    return [
        str(row[0])
        for row in _ask(
            copy,
            "template1",
            "SELECT datname::text FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1",
        )
    ]


def _has_amcheck(copy: Copy, dbname: str) -> bool:
    return bool(_ask(copy, dbname, "SELECT 1 FROM pg_extension WHERE extname = 'amcheck'"))


def _ask(copy: Copy, dbname: str, statement: str) -> list[tuple[object, ...]]:
    from pitr_pipelines.postgres.connection import open_connection
    from pitr_pipelines.restore.drill_checks import UNHINDERED

    parameters = {**copy.parameters(dbname), "options": UNHINDERED}
    with open_connection(f"the restored {copy.database}", parameters) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
