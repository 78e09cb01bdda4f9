"""The contents of a base backup: read, checked, and unpacked into a new data directory.

A base backup is what pg_basebackup wrote in tar format: `base.tar*`, one `<oid>.tar*` for each
tablespace, `pg_wal.tar*` and `backup_manifest`. Every byte is read once and checked on the way,
against PostgreSQL's manifest and, when there is one, against our record; so a file that differs in
one bit is named, and never taken for whole. The base backup itself is never changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pitr_pipelines.catalog.layout import BASE_RECORD
from pitr_pipelines.catalog.records import BaseRecord, FileDigest, Tablespace
from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.postgres.backup_manifest import MANIFEST, BackupManifest, ManifestFile, parse_manifest
from pitr_pipelines.postgres.data_directory import DataDirectory, check_mapping
from pitr_pipelines.postgres.tablespace_map import TABLESPACE_MAP, parse_tablespace_map
from pitr_pipelines.postgres.tar_stream import MemberKind, TarStream
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.wal.lsn import WalFileKind, classify

COMPRESSIONS = {".tar.zst": "zstd", ".tar.gz": "gzip", ".tar": "none"}

_TAR_FILE = re.compile(r"(base|pg_wal|[0-9]+)(\.tar|\.tar\.gz|\.tar\.zst)")
_CONTROL_FILE = "global/pg_control"
_KEPT = frozenset({TABLESPACE_MAP, _CONTROL_FILE})
_WAL = "pg_wal"
_DIGEST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BaseContents:
    """What a base backup was found to hold; all of it was read and agreed with its manifest."""

    manifest: BackupManifest
    system_identifier: str
    tablespaces: tuple[Tablespace, ...]
    files: tuple[FileDigest, ...]


class Destination(Protocol):
    """Where directories and files go, by their path in the source's data directory."""

    def make_directory(self, name: str) -> None: ...

    def create_file(self, name: str) -> int | None:
        """Return a descriptor to write to, or None if the file is only to be checked."""


def read_base(
    directory: Path, *, wal_directory: Path, progress: Report = silent, step: str = "verify"
) -> BaseContents:
    """Read all of a base backup, check it against its manifest, and tell what it holds.

    The WAL it carries, which the manifest does not cover, is put into the empty `wal_directory` for
    whoever checks it. Raises ArtifactDamaged, naming the file.
    """
    manifest, manifest_digest = _read_manifest(directory / MANIFEST)
    tars = _tar_files(directory)
    digests, kept = _read_tars(tars, manifest, _OnlyWal(wal_directory), progress, step)
    with _naming(tars["base"]):
        locations = parse_tablespace_map(kept.get(TABLESPACE_MAP, b""))
        # pg_control begins with this number, in the byte order of the server, which is ours.
        identifier = str(int.from_bytes(kept[_CONTROL_FILE][:8], sys.byteorder))
    for oid in locations:
        if str(oid) not in tars:
            raise damaged(directory, f"the tar file of tablespace {oid} is missing")
    return BaseContents(
        manifest=manifest,
        system_identifier=identifier,
        tablespaces=tuple(Tablespace(oid=oid, location=place) for oid, place in sorted(locations.items())),
        files=tuple(sorted((manifest_digest, *digests), key=lambda digest: digest.name)),
    )


def compression_of(contents: BaseContents) -> str:
    """Return how base.tar is compressed: zstd, gzip or none."""
    suffix = next(file.name for file in contents.files if file.name.startswith("base.")).removeprefix("base")
    return COMPRESSIONS[suffix]


def verify_base(directory: Path, record: BaseRecord, *, progress: Report = silent) -> None:
    """Check that every file is there, no other is, and each has the recorded size and SHA-256.

    Nothing is decompressed. Raises ArtifactDamaged, which names the file, what was expected and
    what was found.
    """
    check_files(directory, record)
    done = 0
    for file in record.files:
        path = directory / file.name
        sha256 = hashlib.sha256()
        buffer = memoryview(bytearray(_DIGEST_BYTES))
        try:
            with open(path, "rb", buffering=0) as source:
                while size := source.readinto(buffer):
                    sha256.update(buffer[:size])
                    done += size
                    progress(Progress("verify", done, record.size_bytes))
        except OSError as error:
            raise damaged(path, f"it cannot be read: {error.strerror}") from None
        _compare(
            path, file, FileDigest(name=file.name, size_bytes=file.size_bytes, sha256=sha256.hexdigest())
        )


def check_files(directory: Path, record: BaseRecord) -> None:
    """Check that exactly the recorded files are there, with their sizes. Reads no content.

    Raises ArtifactDamaged, naming the file. Names that start with a dot are nobody's artifacts.
    """
    for file in record.files:
        path = directory / file.name
        try:
            size = path.stat().st_size
        except OSError:
            raise damaged(path, "it is missing") from None
        if size != file.size_bytes:
            raise damaged(path, f"it should have {file.size_bytes} bytes and has {size}")
    known = {BASE_RECORD, *(file.name for file in record.files)}
    for path in sorted(directory.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            raise damaged(path, "it is not part of the base backup that the record describes")


def extract_base(
    directory: Path,
    record: BaseRecord,
    data_directory: Path,
    tablespaces: Mapping[int, Path],
    account: Account,
    *,
    progress: Report = silent,
) -> None:
    """Unpack a base backup into an existing, empty data directory, checking every file on the way.

    `tablespaces` gives each tablespace of the record its new location, by oid; they are created.
    Everything belongs to `account`. Nothing is synced: the caller syncs the file system when the
    restore is done. `backup_label` stays, so that a server started there begins with recovery.

    Raises BadRequest if `tablespaces` does not fit, DestinationInUse if a directory is not empty,
    ArtifactDamaged, naming the file, and PitrError if writing fails. After the last two, what was
    written so far is left for the caller to remove.
    """
    check_mapping({tablespace.oid for tablespace in record.tablespaces}, tablespaces)
    check_files(directory, record)
    manifest, manifest_digest = _read_manifest(directory / MANIFEST)
    recorded = {file.name: file for file in record.files}
    _compare(directory / MANIFEST, recorded[MANIFEST], manifest_digest)
    tars = _tar_files(directory)
    destination = DataDirectory(data_directory, tablespaces, account)
    try:
        destination.prepare()
        _, kept = _read_tars(tars, manifest, destination, progress, "extract", recorded)
        _check_tablespaces(tars["base"], kept, record)
        destination.link_tablespaces()
    except OSError as error:
        raise PitrError(
            f"cannot write {error.filename or 'below ' + str(data_directory)}: {error.strerror}",
            remedy=f"The base backup needs {manifest.size_bytes} bytes there, and WAL comes on top; make "
            "room or choose another place, and restore again.",
        ) from error


def _check_tablespaces(base: Path, kept: Mapping[str, bytes], record: BaseRecord) -> None:
    """Check that the tablespaces in the base are those of the record, for which new places were chosen.

    PostgreSQL links each tablespace of the map that it finds to where the map says: into the original's.
    """
    with _naming(base):
        found = set(parse_tablespace_map(kept.get(TABLESPACE_MAP, b"")))
        if found != {tablespace.oid for tablespace in record.tablespaces}:
            raise ValueError(f"its {TABLESPACE_MAP} has other tablespaces than the record: {sorted(found)}")


def damaged(path: Path, problem: str) -> ArtifactDamaged:
    """Return the error that says what is wrong with one file of a base backup."""
    return ArtifactDamaged(
        f"{path} is damaged: {problem}",
        remedy="Restore from another day's base backup, or bring this one back from the off-site copy; "
        "`pitr verify` lists everything that is affected.",
    )


class _OnlyWal:
    """Writes the WAL into a directory, and lets everything else only be checked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make_directory(self, name: str) -> None:
        pass

    def create_file(self, name: str) -> int | None:
        top, _, rest = name.partition("/")
        if top != _WAL or classify(rest) is None:
            return None
        return os.open(self._directory / rest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _read_manifest(path: Path) -> tuple[BackupManifest, FileDigest]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror}") from None
    with _naming(path):
        manifest = parse_manifest(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return manifest, FileDigest(name=path.name, size_bytes=len(content), sha256=sha256)


def _tar_files(directory: Path) -> dict[str, Path]:
    """Return the tar files in the order in which they are read: `base`, tablespaces, `pg_wal`."""
    tars: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if path.name in (MANIFEST, BASE_RECORD) or path.name.startswith("."):
            continue
        match = _TAR_FILE.fullmatch(path.name)
        if match is None:
            raise damaged(path, "it is not a file that pg_basebackup writes")
        if match[1] in tars:
            raise damaged(path, f"it is there twice, also as {tars[match[1]].name}")
        tars[match[1]] = path
    for stem in ("base", _WAL):
        if stem not in tars:
            raise damaged(directory, f"it has no {stem}.tar")
    return dict(sorted(tars.items(), key=lambda item: (item[0] != "base", item[0] == _WAL, item[0])))


def _read_tars(
    tars: Mapping[str, Path],
    manifest: BackupManifest,
    destination: Destination,
    progress: Report,
    step: str,
    recorded: Mapping[str, FileDigest] | None = None,
) -> tuple[list[FileDigest], dict[str, bytes]]:
    """Read every tar file once; return their digests on disk and the content of the kept files."""
    missing = dict(manifest.files)
    digests: list[FileDigest] = []
    kept: dict[str, bytes] = {}
    done = reported = 0
    total = sum(path.stat().st_size for path in tars.values())
    for stem, path in tars.items():
        prefix = {"base": "", _WAL: f"{_WAL}/"}.get(stem, f"pg_tblspc/{stem}/")
        destination.make_directory(prefix)  # a tablespace in place has no other entry for its top
        with _naming(path), TarStream(path) as stream:
            for member in stream:
                name = prefix + member.name
                if member.kind is MemberKind.DIRECTORY:
                    destination.make_directory(name)
                    continue
                if stem == _WAL:
                    _check_wal_name(member.name)
                    expected = None
                else:
                    expected = _expected(name, member.size_bytes, missing)
                content = _copy(stream, name, expected, destination.create_file(name))
                if name in _KEPT:
                    kept[name] = content
                if done + stream.bytes_read > reported:
                    reported = done + stream.bytes_read
                    progress(Progress(step, reported, total))
        done += stream.digest.size_bytes
        digests.append(stream.digest)
        if recorded is not None:
            _compare(path, recorded[path.name], stream.digest)
    if missing:
        raise damaged(tars["base"].parent, f"no tar file holds {min(missing)}, which {MANIFEST} lists")
    progress(Progress(step, total, total))
    return digests, kept


def _expected(name: str, size_bytes: int, missing: dict[str, ManifestFile]) -> ManifestFile:
    """Take the manifest's entry for a file, and check its size."""
    expected = missing.pop(name, None)
    if expected is None:
        raise ValueError(f"it holds {name!r}, which {MANIFEST} does not list, or holds it twice")
    if expected.size_bytes != size_bytes:
        raise ValueError(f"{name} in it should have {expected.size_bytes} bytes and has {size_bytes}")
    return expected


def _copy(stream: TarStream, name: str, expected: ManifestFile | None, descriptor: int | None) -> bytes:
    """Check the current member, write it to `descriptor` if there is one, and close that.

    Returns the content if it is one of the kept files, which are small.
    """
    sha256 = hashlib.sha256()
    keep = bytearray()
    try:
        for chunk in stream.content():
            if expected is not None:
                sha256.update(chunk)
            if descriptor is not None:
                _write(descriptor, chunk)
            if name in _KEPT:
                keep += chunk
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if expected is not None and sha256.hexdigest() != expected.sha256:
        raise ValueError(f"{name} in it should have SHA-256 {expected.sha256} and has {sha256.hexdigest()}")
    return bytes(keep)


def _write(descriptor: int, chunk: memoryview) -> None:
    written = os.write(descriptor, chunk)
    while written < len(chunk):
        written += os.write(descriptor, chunk[written:])


def _check_wal_name(name: str) -> None:
    """Raise ValueError unless this is WAL, a history file, or the mark that one was archived."""
    marked = name.removeprefix("archive_status/").removesuffix(".done")
    if classify(name) in (WalFileKind.SEGMENT, WalFileKind.HISTORY):
        return
    if name != f"archive_status/{marked}.done" or classify(marked) is None:
        raise ValueError(f"it holds {name!r}, which is not WAL")


def _compare(path: Path, expected: FileDigest, found: FileDigest) -> None:
    if expected.size_bytes != found.size_bytes:
        raise damaged(path, f"it should have {expected.size_bytes} bytes and has {found.size_bytes}")
    if expected.sha256 != found.sha256:
        raise damaged(path, f"it should have SHA-256 {expected.sha256} and has {found.sha256}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in the error which file of the base backup it is about."""
    try:
        yield
    except ValueError as error:
        raise damaged(path, str(error)) from None
