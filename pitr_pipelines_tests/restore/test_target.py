"""A time is read as the person who wrote it meant it, or refused; and it is always shown with its offset."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.restore.target import (
    HourTarget,
    ImmediateTarget,
    LatestTarget,
    LsnTarget,
    NameTarget,
    Target,
    TimeTarget,
    XidTarget,
    parse_moment,
    parse_target,
    show_moment,
)
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn

PARIS = ZoneInfo("Europe/Paris")
UTC_ZONE = ZoneInfo("UTC")


@pytest.mark.parametrize(
    ("text", "zone", "utc"),
    [
        ("2026-01-29 14:30:00", PARIS, "2026-01-29 13:30:00"),
        ("2026-07-29 14:30:00", PARIS, "2026-07-29 12:30:00"),
        ("2026-01-29 14:30", PARIS, "2026-01-29 13:30:00"),
        ("2026-01-29T14:30:00.123456", PARIS, "2026-01-29 13:30:00.123456"),
        ("  2026-01-29 14:30:00 ", UTC_ZONE, "2026-01-29 14:30:00"),
        ("2026-01-29 14:30:00Z", PARIS, "2026-01-29 14:30:00"),
        ("2026-01-29 14:30:00+05:30", PARIS, "2026-01-29 09:00:00"),
        ("2026-01-29 14:30:00-08", UTC_ZONE, "2026-01-29 22:30:00"),
        ("2026-10-25 01:59:59", PARIS, "2026-10-24 23:59:59"),
        ("2026-10-25 03:00:00", PARIS, "2026-10-25 02:00:00"),
        ("2026-10-25 02:30:00+02:00", PARIS, "2026-10-25 00:30:00"),
        ("2026-10-25 02:30:00+01:00", PARIS, "2026-10-25 01:30:00"),
        ("2026-03-29 03:00:00", PARIS, "2026-03-29 01:00:00"),
    ],
)
def test_times_are_read(text: str, zone: ZoneInfo, utc: str) -> None:
    moment = parse_moment(text, zone)
    assert moment.utcoffset() is not None
    assert moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ") == utc


@pytest.mark.parametrize(
    "text", ["", "yesterday", "14:30", "2026-13-01 00:00", "2026-01-29 25:00", "29/01/2026"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not a time") as caught:
        parse_moment(text, PARIS)
    assert "Europe/Paris" in caught.value.remedy


def test_a_time_that_the_clocks_show_twice_is_refused_with_both_readings() -> None:
    with pytest.raises(BadRequest, match="show 2026-10-25 02:30:00 twice") as caught:
        parse_moment("2026-10-25 02:30:00", PARIS)
    assert "'2026-10-25 02:30:00+02:00' or '2026-10-25 02:30:00+01:00'" in caught.value.remedy


def test_a_time_that_the_clocks_never_show_is_refused_with_both_readings() -> None:
    with pytest.raises(BadRequest, match="never show 2026-03-29 02:30:00") as caught:
        parse_moment("2026-03-29 02:30:00", PARIS)
    for reading in ("2026-03-29 02:30:00+01:00", "2026-03-29 02:30:00+02:00"):
        assert reading in caught.value.remedy
        assert parse_moment(reading, PARIS)


ZONES = ["Europe/Paris", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe", "UTC"]
naive_times = st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1))  # noqa: DTZ001  # given a zone below


@given(naive_times, st.sampled_from(ZONES))
def test_what_is_shown_is_read_back_as_the_same_moment(naive: datetime, key: str) -> None:
    zone = ZoneInfo(key)
    moment = naive.replace(tzinfo=UTC)
    shown = show_moment(moment, zone)
    assert parse_moment(shown, UTC_ZONE) == moment
    try:
        read = parse_moment(moment.astimezone(zone).replace(tzinfo=None).isoformat(), zone)
    except BadRequest:
        other = moment.astimezone(zone).replace(fold=0).utcoffset()
        assert other != moment.astimezone(zone).replace(fold=1).utcoffset()
    else:
        assert read == moment


def test_moments_are_shown_with_their_offset() -> None:
    moment = datetime(2026, 7, 29, 12, 30, tzinfo=UTC)
    assert show_moment(moment, PARIS) == "2026-07-29 14:30:00+02:00"
    assert show_moment(moment, UTC_ZONE) == "2026-07-29 12:30:00+00:00"


def test_targets_say_what_they_are_with_an_offset() -> None:
    assert str(TimeTarget(parse_moment("2026-01-29 14:30", PARIS))) == "the time 2026-01-29 14:30:00+01:00"
    hour = HourTarget(Hour.parse("2026-01-29-14"))
    assert str(hour) == "the end of the hour 2026-01-29-14 (2026-01-29 15:00:00+00:00)"
    assert hour.moment - hour.hour.start == timedelta(hours=1)
    assert str(LatestTarget()) == "the latest moment there is"


def test_exactly_one_target_is_asked_for() -> None:
    assert parse_target(PARIS, time="2026-01-29 14:30") == TimeTarget(parse_moment("2026-01-29 14:30", PARIS))
    assert parse_target(PARIS, hour="2026-01-29-14") == HourTarget(Hour.parse("2026-01-29-14"))
    assert parse_target(PARIS, latest=True) == LatestTarget()
    with pytest.raises(BadRequest, match="no target is given"):
        parse_target(PARIS)
    with pytest.raises(BadRequest, match="several targets are given: an hour, latest"):
        parse_target(PARIS, hour="2026-01-29-14", latest=True)
    with pytest.raises(BadRequest, match="'2026-01-29' is not an hour"):
        parse_target(PARIS, hour="2026-01-29")


@pytest.mark.parametrize(
    ("words", "target", "shown"),
    [
        ({"lsn": "0/3000028"}, LsnTarget(Lsn(0x3000028)), "the LSN 0/3000028"),
        (
            {"lsn": "1/a", "exclusive": True},
            LsnTarget(Lsn(0x1_0000_000A), inclusive=False),
            "the LSN 1/A, exclusive",
        ),
        ({"name": "before deploy"}, NameTarget("before deploy"), "the restore point 'before deploy'"),
        ({"xid": "740"}, XidTarget(740), "the transaction 740"),
        (
            {"xid": "740", "exclusive": True},
            XidTarget(740, inclusive=False),
            "the transaction 740, exclusive",
        ),
        # With the epoch, as pg_current_xact_id() shows it.
        ({"xid": str((1 << 32) + 740)}, XidTarget(740), "the transaction 740"),
        ({"immediate": True}, ImmediateTarget(), "the end of the newest base backup"),
        (
            {"immediate": True, "base": "2026-01-29"},
            ImmediateTarget(date(2026, 1, 29)),
            "the end of the base backup of 2026-01-29",
        ),
        (
            {"time": "2026-01-29 14:30:00Z", "exclusive": True},
            TimeTarget(datetime(2026, 1, 29, 14, 30, tzinfo=UTC), inclusive=False),
            "the time 2026-01-29 14:30:00+00:00, exclusive",
        ),
    ],
)
def test_every_kind_of_target_is_read_and_shown(words: dict[str, Any], target: Target, shown: str) -> None:
    assert parse_target(UTC_ZONE, **words) == target
    assert str(target) == shown


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ({"lsn": "0/3000028", "xid": "5"}, "several targets are given: an LSN, an xid"),
        ({"lsn": "3000028"}, "'3000028' is not an LSN"),
        ({"xid": "0x12"}, "'0x12' is not a transaction id"),
        ({"xid": "2"}, "'2' is not a transaction id"),
        ({"xid": "-5"}, "'-5' is not a transaction id"),
        ({"immediate": True, "base": "yesterday"}, "'yesterday' is not a day"),
        ({"latest": True, "base": "2026-01-29"}, "a base backup is chosen, but the target is latest"),
        ({"latest": True, "exclusive": True}, "exclusive does not go with latest"),
        ({"name": "deploy", "exclusive": True}, "exclusive does not go with a restore point's name"),
        ({"immediate": True, "exclusive": True}, "exclusive does not go with immediate"),
        ({"hour": "2026-01-29-14", "exclusive": True}, "exclusive does not go with an hour"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(words: dict[str, Any], refusal: str) -> None:
    with pytest.raises(BadRequest, match=refusal) as caught:
        parse_target(UTC_ZONE, **words)
    assert caught.value.remedy
