"""What goes into a day's envelope: everything that was not delivered, once, in a size known beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.envelope import EnvelopePlan, EnvelopeTooLarge, plan_envelope
from pitr_pipelines.offsite.envelope_index import Artifact, MemberKind, entry_room, parse_index
from pitr_pipelines_tests.offsite.scenes import MADE_AT, TODAY, fill, plan_of, put_base, put_bundle
from pitr_pipelines_tests.wal_files import at

MIB = 1024 * 1024


def sha(number: int) -> str:
    return f"{number:064x}"


def base(database: str, day: date, *, size: int = 1000, making: int = 0) -> list[Artifact]:
    """A base backup: two tars and a record, which are one unit."""
    directory = f"base/{database}/{day}"
    names = (
        ("base.tar", MemberKind.BASE),
        ("pg_wal.tar", MemberKind.BASE),
        ("backup.json", MemberKind.RECORD),
    )
    return [
        Artifact(
            path=f"{directory}/{name}",
            kind=kind,
            database=database,
            unit=directory,
            day=day,
            size_bytes=size,
            sha256=sha(making),
        )
        for name, kind in names
    ]


def bundle(database: str, hour: str, *, size: int = 1000, making: int = 0) -> list[Artifact]:
    """A bundle and its record, which are one unit."""
    stem = f"bundles/{database}/{hour}"
    names = ((f"{stem}.json", MemberKind.RECORD), (f"{stem}.tar.gz", MemberKind.BUNDLE))
    return [
        Artifact(
            path=path,
            kind=kind,
            database=database,
            unit=stem,
            day=date.fromisoformat(hour[:10]),
            size_bytes=size,
            sha256=sha(making),
        )
        for path, kind in names
    ]


def plan(
    artifacts: Iterable[Artifact], delivered: Iterable[tuple[str, str]] = (), limit_bytes: int | None = None
) -> EnvelopePlan:
    return plan_envelope(
        artifacts, day=TODAY, made_at=MADE_AT, delivered=frozenset(delivered), limit_bytes=limit_bytes
    )


def identities(artifacts: Iterable[Artifact]) -> set[tuple[str, str]]:
    return {file.identity for file in artifacts}


databases = st.sampled_from(["order-db", "users", "a"])
days = st.integers(0, 6).map(lambda back: TODAY - timedelta(days=back))
units = st.one_of(
    st.builds(base, databases, days, size=st.integers(0, 300_000), making=st.integers(0, 2)),
    st.builds(
        bundle,
        databases,
        st.builds("2026-01-{:02}-{:02}".format, st.integers(23, 29), st.integers(0, 23)),
        size=st.integers(0, 300_000),
        making=st.integers(0, 2),
    ),
)
worlds = st.lists(units, unique_by=lambda files: files[0].unit, max_size=12)


@given(worlds, st.data())
def test_what_was_not_delivered_goes_and_nothing_goes_twice(
    world: list[list[Artifact]], data: st.DataObject
) -> None:
    done = [unit for unit in world if data.draw(st.booleans())]
    delivered = identities(file for unit in done for file in unit)
    waiting = identities(file for unit in world if unit not in done for file in unit)

    index = plan([file for unit in world for file in unit], delivered).index

    assert index.delivers == waiting
    assert len(index.members) == len(waiting)


def newest_bases(world: list[list[Artifact]]) -> dict[str | None, date]:
    bases = [unit[0] for unit in world if unit[0].kind is MemberKind.BASE]
    return {
        base.database: max(other.day or TODAY for other in bases if other.database == base.database)
        for base in bases
    }


@given(worlds, st.integers(0, 5 * MIB))
def test_only_what_newer_bases_make_up_for_stays_behind_and_only_for_want_of_room(
    world: list[list[Artifact]], limit: int
) -> None:
    everything = [file for unit in world for file in unit]
    newest = newest_bases(world)
    must = [unit for unit in world if (unit[0].day or TODAY) >= newest.get(unit[0].database, date.min)]
    try:
        made = plan(everything, limit_bytes=limit)
    except EnvelopeTooLarge:
        assert plan(file for unit in must for file in unit).size_bytes > limit
        return
    assert made.size_bytes <= limit
    left = identities(made.left_behind)
    assert made.index.delivers | left == identities(everything)
    assert not made.index.delivers & left
    assert made.index.delivers >= identities(file for unit in must for file in unit)


@given(worlds, st.integers(0, 5 * MIB))
def test_older_wal_goes_newest_first_and_before_older_bases(world: list[list[Artifact]], limit: int) -> None:
    try:
        made = plan([file for unit in world for file in unit], limit_bytes=limit)
    except EnvelopeTooLarge:
        return
    left_wal = [file.day for file in made.left_behind if file.kind is MemberKind.BUNDLE]
    newest = newest_bases(world)
    for entry in made.index.members:
        file = entry.artifact
        older = file.day is not None and file.day < newest.get(file.database, date.min)
        if file.kind is MemberKind.BUNDLE and older:
            assert all(day is not None and file.day is not None and day <= file.day for day in left_wal)


@given(worlds)
def test_members_lie_close_together_and_a_record_after_what_it_is_about(world: list[list[Artifact]]) -> None:
    made = plan(file for unit in world for file in unit)

    end = made.index.members[0].offset if made.index.members else 0
    for entry in made.index.members:
        assert entry.offset == end
        assert entry.length == entry_room(entry.artifact.path, entry.artifact.size_bytes, None)
        end = entry.end
    if made.index.members:
        assert made.size_bytes == end + 1024
    place = {entry.artifact.path: entry.offset for entry in made.index.members}
    for unit in world:
        record = next(file for file in unit if file.kind is MemberKind.RECORD)
        assert place[record.path] == max(place[file.path] for file in unit)
    owners = [entry.artifact.database for entry in made.index.members]
    assert owners == sorted(owners, key=str)


def test_an_artifact_that_was_replaced_goes_again() -> None:
    open_bundle, closed = (bundle("order-db", "2026-01-29-03", making=making) for making in (1, 2))

    assert plan(closed, identities(open_bundle)).index.delivers == identities(closed)


def test_a_base_of_which_one_file_was_replaced_goes_whole() -> None:
    files = base("order-db", TODAY)

    assert plan(files, identities(files[1:])).index.delivers == identities(files)


def test_what_failed_days_left_rides_along_newest_first_as_far_as_there_is_room() -> None:
    bases = [base("order-db", TODAY - timedelta(days=back), size=MIB) for back in range(4)]
    files = [file for unit in bases for file in unit]

    made = plan(files, limit_bytes=10 * MIB)

    assert made.index.delivers == identities(file for unit in bases[:3] for file in unit)
    assert identities(made.left_behind) == identities(bases[3])


def test_in_a_new_bucket_the_history_that_does_not_fit_at_once_follows_in_the_next_envelopes() -> None:
    days = [TODAY - timedelta(days=back) for back in range(10)]
    world = [*(base("order-db", day, size=MIB) for day in days)]
    world += [bundle("order-db", f"{day}-{hour:02}", size=MIB // 8) for day in days for hour in (4, 5)]
    files = [file for unit in world for file in unit]
    sent: set[tuple[str, str]] = set()

    for _ in range(20):
        sent |= plan(files, sent, limit_bytes=6 * MIB).index.delivers
        if sent == identities(files):
            return
    raise AssertionError("it never all went")


def test_a_base_that_was_delivered_today_does_not_bring_the_older_ones_back_as_a_must() -> None:
    bases = [base("order-db", TODAY - timedelta(days=back), size=MIB) for back in range(2)]

    made = plan([*bases[0], *bases[1]], identities(bases[0]), limit_bytes=MIB)

    assert made.index.members == ()
    assert identities(made.left_behind) == identities(bases[1])


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(EnvelopeTooLarge) as refused:
        plan(base("order-db", TODAY, size=2 * MIB) + bundle("users", "2026-01-29-03"), limit_bytes=5 * MIB)

    text = str(refused.value)
    assert "6 MiB" in text
    assert "at most 5 MiB" in text
    assert "bases of order-db" in text
    assert "incremental" in text
    assert "unit: upload" in text


def test_everything_below_a_backup_root_is_found(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "backup")
    fill(layout, ["order-db", "users"])
    (layout.bundles("users") / ".2026-01-29-05.tar.gz.1-2.tmp").write_bytes(b"being written")
    (layout.wal("users") / "000000010000000000000001").write_bytes(b"raw WAL goes in bundles")

    found = find_artifacts(layout, ["order-db", "users"])

    paths = {file.path for file in found.artifacts}
    assert not found.problems
    assert {path for path in paths if "users" in path} == {
        "base/users/2026-01-29/base.tar",
        "base/users/2026-01-29/backup_manifest",
        "base/users/2026-01-29/backup.json",
        "bundles/users/2026-01-29-03.tar.gz",
        "bundles/users/2026-01-29-03.json",
        "bundles/users/2026-01-29-03.seal.json",
        "bundles/users/2026-01-29-04.tar.gz",
        "bundles/users/2026-01-29-04.json",
        "bundles/users/2026-01-29-04.seal.json",
        "wal/users/00000002.history",
    }
    assert "manifests/restore-points.json" in paths
    assert len(paths) == 21


def test_one_bad_record_is_named_and_hides_nothing_else(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    put_bundle(layout, "order-db", 3, first=1)
    put_base(layout, "order-db", at(3), b"x")
    bad = layout.bundles("order-db") / "2026-01-29-04.json"
    bad.write_text("{")

    found = find_artifacts(layout, ["order-db", "users"])

    assert len(found.artifacts) == 5
    assert [str(bad) in problem for problem in found.problems] == [True]


def test_an_index_says_what_it_says_when_it_is_read_back(tmp_path: Path) -> None:
    fill(Layout(tmp_path))
    made = plan_of(Layout(tmp_path))

    assert parse_index(made.index_text, name="2026-01-29.tar") == made.index


@pytest.mark.parametrize(
    "path", ["../etc/passwd", "/etc/passwd", "base/../../x", "base//x", ".ssh/config", "base/..", "", "a\nb"]
)
def test_a_path_that_leads_elsewhere_is_no_path_of_a_member(path: str) -> None:
    with pytest.raises(ValidationError):
        Artifact(path=path, kind=MemberKind.BASE, unit="x", size_bytes=0, sha256=sha(0))
