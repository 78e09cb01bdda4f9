"""backup_manifest: what PostgreSQL says is in a base backup, file by file.

The manifest checks itself: its last line is the SHA-256 of all that comes before. It covers every
file of the data directory and of the tablespaces, and none of the WAL.
Source: "Backup Manifest Format" in PostgreSQL's documentation.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from pitr_pipelines.wal.lsn import Lsn

MANIFEST = "backup_manifest"

_VERSIONS = (1, 2)


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of the data directory or of a tablespace."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WalRange:
    """WAL that recovery needs to make the backup consistent, from `start` to `end`."""

    timeline: int
    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """A manifest whose own checksum was right. `files` maps a path in the data directory."""

    files: dict[str, ManifestFile]
    wal_ranges: tuple[WalRange, ...]
    system_identifier: str | None
    """Given since PostgreSQL 17."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())


def parse_manifest(content: bytes) -> BackupManifest:
    """Read a manifest and check its own checksum.

    Raises ValueError, which says what is wrong, if it is not a whole manifest with SHA-256 checksums.
    """
    try:
        document = json.loads(content)
        stated = document["Manifest-Checksum"]
        version = document["PostgreSQL-Backup-Manifest-Version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("it is not a whole backup manifest") from None
    found = hashlib.sha256(_checked_part(content)).hexdigest()
    if found != stated:
        raise ValueError(f"its own checksum does not match: it states {stated}, the content gives {found}")
    if version not in _VERSIONS:
        raise ValueError(f"its format is version {version}, and only {_VERSIONS} are known here")
    try:
        identifier = document.get("System-Identifier")
        return BackupManifest(
            files=dict(_file(entry) for entry in document["Files"]),
            wal_ranges=tuple(
                WalRange(entry["Timeline"], Lsn.parse(entry["Start-LSN"]), Lsn.parse(entry["End-LSN"]))
                for entry in document["WAL-Ranges"]
            ),
            system_identifier=None if identifier is None else str(identifier),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry is not as PostgreSQL writes it ({error!r})") from None


def _checked_part(content: bytes) -> bytes:
    """All up to the last line, which is the one that holds the checksum."""
    return content[: content.rstrip(b"\n").rfind(b"\n") + 1]


def _file(entry: dict[str, Any]) -> tuple[str, ManifestFile]:
    encoded = entry.get("Encoded-Path")  # for names that are not UTF-8
    path = entry["Path"] if encoded is None else os.fsdecode(bytes.fromhex(encoded))
    if entry.get("Checksum-Algorithm") != "SHA256":
        raise ValueError(f"it has no SHA-256 for {path}")
    return path, ManifestFile(entry["Size"], entry["Checksum"])
