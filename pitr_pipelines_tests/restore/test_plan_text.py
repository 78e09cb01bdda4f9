"""A plan is shown with all that decides whether one wants it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pitr_pipelines.catalog.records import Tablespace
from pitr_pipelines.restore.plan import Plan, StopAtEnd, StopAtTime
from pitr_pipelines.restore.plan_text import plan_json, plan_lines, stop_text
from pitr_pipelines.restore.stop import Stop, StopAtConsistency, StopAtLsn, StopAtXid
from pitr_pipelines.restore.target import HourTarget, LatestTarget, TimeTarget
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalSegment
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.lsn import Lsn, WalFileKind
from pitr_pipelines.wal.timelines import TimelineHistory
from pitr_pipelines_tests.wal_files import DAY, at, base_record, bundle_record, hour_of, segment

PARIS = ZoneInfo("Europe/Paris")
BASE = base_record(1, 1, at(3))
BUNDLED = {segment(n): at(3, n) for n in (2, 3)}
RECORD = bundle_record(3, BUNDLED)


def raw(number: int) -> InArchive:
    return InArchive(ArchivedFile(Path(f"/w/{segment(number)}"), WalFileKind.SEGMENT, 1, at(4, number)))


PLAN = Plan(
    "order-db",
    TimeTarget(at(4, 5)),
    BASE,
    TimelineHistory(1),
    (
        WalSegment(segment(1), at(3), InBase(DAY.date())),
        *[WalSegment(segment(2 + i), at(3), InBundle(hour_of(3), m)) for i, m in enumerate(RECORD.members)],
        WalSegment(segment(4), at(4, 4), raw(4)),
    ),
    StopAtTime(at(4, 5)),
    ("a note",),
)


def test_in_lines_it_says_from_what_through_what_to_where() -> None:
    assert plan_lines(PLAN, PARIS) == [
        "restore order-db to 2026-01-29 05:05:00+01:00",
        "  base      2026-01-29, taken until 2026-01-29 04:00:00+01:00, "
        "PostgreSQL 15, 1000 B (1000 B unpacked)",
        "  replay    4 segments, 4 MiB, to timeline 1:",
        f"              {segment(1)}  from base 2026-01-29",
        f"              {segment(2)} to {segment(3)}  from bundle 2026-01-29-03",
        f"              {segment(4)}  from raw archive",
        "  stop      after the last commit at or before 2026-01-29 05:05:00+01:00",
        "  note      a note",
    ]


def test_it_says_where_each_tablespace_goes() -> None:
    tablespaces = (Tablespace(oid=16388, location="/srv/one"), Tablespace(oid=16389, location="/srv/two"))
    plan = replace(PLAN, base=BASE.model_copy(update={"tablespaces": tablespaces}))
    placed = {16389: Path("/fast/two")}
    assert [line for line in plan_lines(plan, PARIS, placed) if "tablespace" in line] == [
        "  tablespace 16388, from /srv/one, to <the restore's directory>/tablespaces/16388",
        "  tablespace 16389, from /srv/two, to /fast/two",
    ]
    assert plan_json(plan, placed)["tablespaces"] == [
        {"oid": 16388, "from": "/srv/one", "to": None},
        {"oid": 16389, "from": "/srv/two", "to": "/fast/two"},
    ]


def test_a_plan_to_the_end_says_why() -> None:
    plan = replace(PLAN, target=LatestTarget(), stop=StopAtEnd("everything there is was asked for"), notes=())
    lines = plan_lines(plan, PARIS)
    assert lines[0] == "restore order-db to the latest moment there is"
    assert lines[-1] == "  stop      at the end of that WAL, because everything there is was asked for"


def test_as_json_it_says_the_same() -> None:
    shown = json.loads(json.dumps(plan_json(PLAN)))
    assert shown["target"] == "2026-01-29T04:05:00+00:00"
    assert shown["stop"] == {"at": "time", "moment": "2026-01-29T04:05:00+00:00", "inclusive": True}
    assert [one["from"] for one in shown["segments"]] == [
        "base 2026-01-29",
        "bundle 2026-01-29-03",
        "bundle 2026-01-29-03",
        "raw archive",
    ]
    assert shown["notes"] == ["a note"]
    to_end = plan_json(replace(PLAN, target=LatestTarget(), stop=StopAtEnd("so")))
    assert (to_end["target"], to_end["stop"]) == (None, {"at": "end", "why": "so"})
    assert plan_json(replace(PLAN, target=HourTarget(hour_of(3))))["target"] == "2026-01-29T04:00:00+00:00"


@pytest.mark.parametrize(
    ("stop", "text", "kind"),
    [
        (
            StopAtTime(at(4), inclusive=False),
            "after the last commit before 2026-01-29 04:00:00+00:00",
            "time",
        ),
        (StopAtLsn(Lsn(0x3000028)), "after the first record that begins at 0/3000028 or later", "lsn"),
        (
            StopAtLsn(Lsn(0x3000028), False),
            "before the first record that begins at 0/3000028 or later",
            "lsn",
        ),
        (
            StopAtLsn(Lsn(0x3000028), restore_point="deploy"),
            "after the restore point 'deploy', recorded at 0/3000028",
            "restore_point",
        ),
        (
            StopAtXid(740, True, True, at(4)),
            "after the commit of transaction 740, at 2026-01-29 04:00:00+00:00",
            "xid",
        ),
        (
            StopAtXid(740, False, False, at(4)),
            "before the rollback of transaction 740, at 2026-01-29 04:00:00+00:00",
            "xid",
        ),
        (StopAtConsistency(), "as soon as the base backup is consistent", "consistency"),
    ],
)
def test_every_stop_is_said_in_words_and_in_json(stop: Stop, text: str, kind: str) -> None:
    assert stop_text(stop, ZoneInfo("UTC")) == text
    assert plan_json(replace(PLAN, stop=stop))["stop"]["at"] == kind
