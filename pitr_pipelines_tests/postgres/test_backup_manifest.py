"""The manifest is read as PostgreSQL writes it, and only if its own checksum is right."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.postgres.backup_manifest import ManifestFile, WalRange, parse_manifest
from pitr_pipelines.wal.lsn import Lsn

_SHA = "ab" * 32


def manifest(files: list[dict[str, Any]], *, version: int = 2, **more: Any) -> bytes:
    """Return a manifest laid out line by line as PostgreSQL does, with the right checksum."""
    head = {"PostgreSQL-Backup-Manifest-Version": version, **more}
    lines = [f"{{ {json.dumps(head)[1:-1]},", '"Files": [']
    lines += [",\n".join(json.dumps(file) for file in files), "],", '"WAL-Ranges": [']
    lines += ['{ "Timeline": 3, "Start-LSN": "1/2000028", "End-LSN": "1/2000120" }', "],"]
    text = "\n".join(lines) + "\n"
    return (text + f'"Manifest-Checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n').encode()


def entry(path: str = "base/1/2", **changes: Any) -> dict[str, Any]:
    return {"Path": path, "Size": 8192, "Checksum-Algorithm": "SHA256", "Checksum": _SHA, **changes}


def test_gives_files_wal_range_and_system_identifier() -> None:
    parsed = parse_manifest(
        manifest([entry(), entry("global/1")], **{"System-Identifier": 7710975434232959727})
    )
    assert parsed.files == {"base/1/2": ManifestFile(8192, _SHA), "global/1": ManifestFile(8192, _SHA)}
    assert parsed.wal_ranges == (WalRange(3, Lsn.parse("1/2000028"), Lsn.parse("1/2000120")),)
    assert parsed.system_identifier == "7710975434232959727"
    assert parsed.size_bytes == 16384


def test_before_version_17_there_is_no_system_identifier() -> None:
    assert parse_manifest(manifest([entry()], version=1)).system_identifier is None


def test_a_name_that_is_not_utf8_is_given_as_the_file_system_has_it() -> None:
    name = b"base/1/\xff\xfe"
    file = {"Encoded-Path": name.hex(), **entry()}
    del file["Path"]
    assert list(parse_manifest(manifest([file])).files) == [os.fsdecode(name)]


@given(st.data())
def test_a_flipped_byte_anywhere_is_refused(data: st.DataObject) -> None:
    content = bytearray(manifest([entry(), entry("global/1")]))
    position = data.draw(st.integers(0, len(content) - 2))  # not the final newline, which says nothing
    content[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"manifest|checksum"):
        parse_manifest(bytes(content))


@given(st.data())
def test_a_manifest_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    content = manifest([entry()])
    length = data.draw(st.integers(0, len(content) - 2))  # not the final newline, which says nothing
    with pytest.raises(ValueError, match="not a whole backup manifest"):
        parse_manifest(content[:length])


def test_other_checksums_than_sha256_are_refused() -> None:
    with pytest.raises(ValueError, match="no SHA-256 for base/1/2"):
        parse_manifest(manifest([entry(**{"Checksum-Algorithm": "CRC32C", "Checksum": "00"})]))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="version 3"):
        parse_manifest(manifest([entry()], version=3))
