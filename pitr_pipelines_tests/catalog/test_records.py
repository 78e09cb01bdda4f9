"""Records say only what they may say: no path out of their directory, no unknown key, no odd number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.catalog.records import (
    BaseRecord,
    BundleRecord,
    SealRecord,
    read_record,
    write_record,
)
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines_tests.wal_files import at, base_record, bundle_record, seal_record, segment

SEAL = seal_record(9, 2, at(10))
BUNDLE = bundle_record(9, {segment(1): at(9, 1), segment(2): at(9, 2)}, seal=SEAL)
RECORDS = [BUNDLE, bundle_record(9, {}), base_record(1, 2, at(3)), SEAL]


@pytest.mark.parametrize(
    "record", [BUNDLE, bundle_record(9, {}), base_record(1, 2, at(3)), seal_record(9, 2, at(10))]
)
def test_a_record_is_read_back_as_it_was_written(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "record.json"
    write_record(path, record)
    first = path.read_bytes()
    assert read_record(path, type(record)) == record
    write_record(path, read_record(path, type(record)))
    assert path.read_bytes() == first
    assert first.endswith(b"}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_times_are_written_in_utc_whatever_zone_they_came_in(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, SEAL)
    text = path.read_text()
    path.write_text(text.replace("2026-01-29T10:00:00Z", "2026-01-29T11:00:00+01:00"))
    assert path.read_text() != text
    record = read_record(path, SealRecord)
    assert str(record.at) == "2026-01-29 10:00:00+00:00"
    write_record(path, record)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        ".hidden",
        "a/b",
        "a\\b",
        "a\n",
        "a b",
        "-rf",
        "ä",
        "x\0",
        "base.tar/..",
    ],
)
def test_no_file_name_leads_out_of_its_directory(tmp_path: Path, name: str) -> None:
    values = BUNDLE.model_dump(mode="json")
    for part in (values["file"], values["members"][0]):
        good, part["name"] = part["name"], name
        path = tmp_path / "record.json"
        path.write_text(json.dumps(values))
        with pytest.raises(ArtifactDamaged, match=r"record\.json cannot be used: \S*name"):
            read_record(path, BundleRecord)
        part["name"] = good
    base = base_record(1, 2, at(3)).model_dump(mode="json")
    base["files"][0]["name"] = name
    path.write_text(json.dumps(base))
    with pytest.raises(ArtifactDamaged, match=r"files\.0\.name"):
        read_record(path, BaseRecord)


@pytest.mark.parametrize("where", [(), ("file",), ("members", 0), ("runs", 0), ("seal",)])
def test_unknown_keys_are_refused_and_named(tmp_path: Path, where: tuple[str | int, ...]) -> None:
    values = BUNDLE.model_dump(mode="json")
    part: Any = values
    for step in where:
        part = part[step]
    part["surprise"] = 1
    path = tmp_path / "record.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactDamaged, match="surprise"):
        read_record(path, BundleRecord)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("kind", "base_backup"),
        ("hour", "2026-01-29"),
        ("state", "ajar"),
        ("wal_segment_size", 3_000_000),
        ("runs", [{"first": "x", "last": "x", "closed_at": "2026-01-29T09:00:00Z"}]),
        ("runs", [{"first": str(segment(1)), "last": str(segment(1)), "closed_at": "2026-01-29T09:00:00"}]),
        ("database", None),
    ],
)
def test_values_that_do_not_fit_are_refused_and_their_key_named(
    tmp_path: Path, key: str, value: object
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**BUNDLE.model_dump(mode="json"), key: value}))
    with pytest.raises(ArtifactDamaged, match=f"cannot be used: {key}"):
        read_record(path, BundleRecord)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b"\0" * 100])
def test_what_is_no_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"record\.json"):
        read_record(path, BundleRecord)


def test_a_missing_record_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "record.json", BundleRecord)


def test_the_first_and_last_segments_of_a_base_are_those_that_recovery_reads() -> None:
    base = base_record(3, 5, at(3))
    assert (base.first_segment, base.last_segment) == (segment(3), segment(5))
    ends_at_a_boundary = base.model_copy(update={"end_lsn": segment(6).start(1 << 20)})
    assert ends_at_a_boundary.last_segment == segment(5)
