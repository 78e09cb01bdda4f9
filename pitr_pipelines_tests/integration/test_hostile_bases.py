"""A base backup that somebody made up leads no restore outside its directory, whatever is in it.

Each is a real base backup with something added, whose manifest and record agree with it: so only what
unpacks it can refuse. It goes through the restore that users run.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.catalog.layout import BASE_RECORD
from pitr_pipelines.catalog.records import BaseRecord, FileDigest, read_record, write_record
from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.tablespace_map import TABLESPACE_MAP
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.restore.scenes import Scene, make_scene
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow

Entries = list[tuple[tarfile.TarInfo, bytes]]


@dataclass
class Forgery:
    """The base backup of a scene, open to be changed."""

    scene: Scene

    @property
    def directory(self) -> Path:
        return next(path for path in self.scene.layout.bases(self.scene.server.name).glob("20*"))

    def forge(self, change: Callable[[Entries], None], listed: dict[str, bytes] | None = None) -> None:
        """Change the entries of base.tar; list more files in the manifest; let all sums agree."""
        base = self.directory / "base.tar"
        with tarfile.open(base) as tar:
            entries = [
                (info, file.read() if (file := tar.extractfile(info)) is not None else b"") for info in tar
            ]
        change(entries)
        with tarfile.open(base, "w", format=tarfile.USTAR_FORMAT) as tar:
            for info, content in entries:
                tar.addfile(info, io.BytesIO(content))
        self._rewrite_manifest(listed or {})
        record = read_record(self.directory / BASE_RECORD, BaseRecord)
        files = tuple(self._digest(file.name) for file in record.files)
        write_record(self.directory / BASE_RECORD, record.model_copy(update={"files": files}))

    def _rewrite_manifest(self, listed: dict[str, bytes]) -> None:
        path = self.directory / "backup_manifest"
        document = json.loads(path.read_bytes())
        document["Files"] = [entry for entry in document["Files"] if entry.get("Path") not in listed] + [
            {
                "Path": name,
                "Size": len(content),
                "Checksum-Algorithm": "SHA256",
                "Checksum": hashlib.sha256(content).hexdigest(),
            }
            for name, content in listed.items()
        ]
        del document["Manifest-Checksum"]
        text = json.dumps(document)[:-1] + ",\n"
        checksum = hashlib.sha256(text.encode()).hexdigest()
        path.write_text(text + f'"Manifest-Checksum": "{checksum}"}}\n')

    def _digest(self, name: str) -> FileDigest:
        content = (self.directory / name).read_bytes()
        return FileDigest(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def restore(self) -> Path:
        plan = self.scene.plan(LatestTarget())
        destination = self.scene.destination(plan, keep_running=False)
        restore(self.scene.settings, plan, destination)
        return destination.data_directory


class PlainSettings(SettingsMaker):
    """Makes settings with which bases are plain tar, which is the easiest to change."""

    def __call__(self, *servers: TestServer, **keys: Any) -> Settings:
        return super().__call__(*servers, base_backup={"compression": "none"}, **keys)


@pytest.fixture
def forgery(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Forgery:
    return Forgery(make_scene(server_factory, PlainSettings(pitr_settings.directory)))


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, 0o644
    return info


def tree(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*")}


ATTACKS: dict[str, list[tuple[str, bytes, str]]] = {
    "parent": [("../../escaped", tarfile.REGTYPE, "")],
    "hidden parent": [("base/../../../escaped", tarfile.REGTYPE, "")],
    "absolute": [("{outside}/escaped", tarfile.REGTYPE, "")],
    "link": [("link", tarfile.SYMTYPE, "{outside}")],
    "link, then a file through it": [
        ("link", tarfile.SYMTYPE, "{outside}"),
        ("link/escaped", tarfile.REGTYPE, ""),
    ],
    "link in the place of pg_wal": [("pg_wal", tarfile.SYMTYPE, "{outside}")],
    "hard link": [("hard", tarfile.LNKTYPE, "{outside}/precious")],
    "pipe": [("pipe", tarfile.FIFOTYPE, "")],
    "device": [("device", tarfile.CHRTYPE, "")],
    "block device": [("device", tarfile.BLKTYPE, "")],
    "other kind": [("odd", b"Z", "")],
    "unlisted": [("base/unlisted\x1b[2J\nname", tarfile.REGTYPE, "")],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_member_that_no_pg_basebackup_writes_is_refused(
    forgery: Forgery, attack: str, reachable_tmp: Path
) -> None:
    outside = reachable_tmp / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    (outside / "precious").write_bytes(b"precious")
    members = [
        (name.format(outside=outside), kind, link.format(outside=outside))
        for name, kind, link in ATTACKS[attack]
    ]

    def add(entries: Entries) -> None:
        at = 1
        for name, kind, link in members:
            content = b"evil" if kind == tarfile.REGTYPE else b""
            entries.insert(at, (entry(name, kind, link, len(content)), content))
            at += 1

    listed = {name: b"evil" for name, kind, _ in members if kind == tarfile.REGTYPE}
    forgery.forge(add, {} if attack == "unlisted" else listed)
    before = tree(outside)

    with pytest.raises(PitrError, match=r"base\.tar is damaged") as caught:
        forgery.restore()

    assert tree(outside) == before
    assert (outside / "precious").read_bytes() == b"precious"
    assert not list(reachable_tmp.rglob("escaped"))
    assert "\x1b" not in str(caught.value)


def test_set_id_bits_and_owners_of_members_come_to_nothing(forgery: Forgery) -> None:
    def add(entries: Entries) -> None:
        info = entry("setuid", size=4)
        info.mode, info.uid, info.gid, info.uname = 0o6777, 0, 0, "root"
        entries.insert(1, (info, b"evil"))
        directory = entry("open", tarfile.DIRTYPE)
        directory.mode = 0o7777
        entries.insert(1, (directory, b""))

    forgery.forge(add, {"setuid": b"evil"})
    data = forgery.restore()
    account = forgery.scene.server.cluster.account
    for name, mode in (("setuid", 0o600), ("open", 0o700)):
        status = (data / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid) == (mode, account.uid)


def test_a_tablespace_that_the_record_keeps_silent_about_is_not_linked(
    forgery: Forgery, reachable_tmp: Path
) -> None:
    """PostgreSQL would link it to where the map says, and remove and write there."""
    outside = reachable_tmp / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    map_text = f"16384 {outside}\n".encode()

    def add(entries: Entries) -> None:
        entries[:] = [pair for pair in entries if pair[0].name.removeprefix("./") != TABLESPACE_MAP]
        entries.insert(1, (entry(TABLESPACE_MAP, size=len(map_text)), map_text))

    forgery.forge(add, {TABLESPACE_MAP: map_text})
    with pytest.raises(PitrError, match="has other tablespaces than the record"):
        forgery.restore()
    assert tree(outside) == {str(outside / "precious")}


def test_a_negative_size_is_refused(forgery: Forgery) -> None:
    forgery.forge(lambda entries: None)
    base = forgery.directory / "base.tar"
    header = bytearray(entry("negative").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x80"  # base-256: -128
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    base.write_bytes(bytes(header) + base.read_bytes())
    record = read_record(forgery.directory / BASE_RECORD, BaseRecord)
    files = tuple(forgery._digest(file.name) for file in record.files)
    write_record(forgery.directory / BASE_RECORD, record.model_copy(update={"files": files}))
    with pytest.raises(PitrError, match="negative size"):
        forgery.restore()


def test_nothing_that_was_refused_is_taken_for_a_restore(forgery: Forgery) -> None:
    forgery.forge(
        lambda entries: entries.insert(1, (entry("pipe", tarfile.FIFOTYPE), b"")),
    )
    with pytest.raises(PitrError):
        forgery.restore()
    left = [path for path in forgery.scene.settings.restore_root.rglob("*") if path.name == "PG_VERSION"]
    assert left == []
