"""Where a restore goes: a new directory, checked before anything is touched, then claimed.

The promise: nothing that exists is ever overwritten. From the moment it is claimed until the restore
is whole and on disk, the directory holds a file INCOMPLETE, which is created first and removed last;
a directory with that file is never taken for a database, by us or by a person who looks at it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import BadRequest, DestinationInUse, PitrError
from pitr_pipelines.postgres.account import Account, give, make_owned_directory, run, server_account
from pitr_pipelines.postgres.data_directory import INCOMPLETE
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.tablespace_places import check_apart, resolve_places, sizes
from pitr_pipelines.restore.target import (
    HourTarget,
    ImmediateTarget,
    LatestTarget,
    LsnTarget,
    NameTarget,
    TimeTarget,
    XidTarget,
)
from pitr_pipelines.restore.wal_source import InBase
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_bytes

__all__ = ["INCOMPLETE", "Destination", "DestinationUnusable", "choose_destination", "claim"]

AHEAD_BYTES = 512 * 1024**2
"""How much WAL may be ready for recovery and not yet taken."""

REPLAYED_WAL_KEPT = 8 * 1024**3
"""How much replayed WAL, in bytes, recovery may keep in pg_wal before it removes the oldest."""

_SPARE_BYTES = 256 * 1024**2
_SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket that Linux takes, without its final zero (man 7 unix)."""


class DestinationUnusable(PitrError):
    """The directory is too small for the restore, or cannot be reached. Nothing was touched."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Destination:
    """A restore's own directory, and the port on which the restored server is to listen.

    `placed` holds the directories of the tablespaces, by oid, that are to lie elsewhere.
    """

    directory: Path
    port: int
    keep_running: bool
    placed: Mapping[int, Path] = field(default_factory=dict, hash=False)

    @property
    def data_directory(self) -> Path:
        return self.directory / "data"

    @property
    def tablespaces(self) -> Path:
        """Holds a directory for each tablespace that has no other place, named by its oid."""
        return self.directory / "tablespaces"

    def tablespace(self, oid: int) -> Path:
        """Return where a tablespace goes."""
        return self.placed.get(oid, self.tablespaces / str(oid))

    @property
    def directories(self) -> tuple[Path, ...]:
        """Everything that the restore fills, its own directory last: each is marked while it does."""
        return (*self.placed.values(), self.directory)

    @property
    def wal(self) -> Path:
        """Holds the WAL that is ready for recovery, while it runs."""
        return self.directory / "wal"

    @property
    def script(self) -> Path:
        return self.directory / "restore-wal.sh"

    @property
    def run(self) -> Path:
        """Where the server's socket is, unless that path is too long."""
        return self.directory / "run"

    @property
    def log_file(self) -> Path:
        return self.directory / "server.log"

    @property
    def report_file(self) -> Path:
        return self.directory / "restore.json"

    @property
    def marker(self) -> Path:
        return self.directory / INCOMPLETE

    @property
    def markers(self) -> tuple[Path, ...]:
        """Every mark, that of the restore's own directory last."""
        return tuple(directory / INCOMPLETE for directory in self.directories)


def choose_destination(
    settings: Settings,
    plan: Plan,
    *,
    to: Path | None,
    port: int | None,
    keep_running: bool,
    tablespaces: Mapping[str, str] | None = None,
    layout: Layout | None = None,
) -> Destination:
    """Decide where a plan is carried out, and check that it can be there. Touches nothing.

    `to` is a directory that does not exist or is empty; by default it is a new one in
    `restore_root`, named for the database and the target. `port` is on 127.0.0.1; by default one
    that is free. `tablespaces` gives new or empty directories, by oid or by location on the source,
    to tablespaces that are not to lie in the restore's. `layout` is where the artifacts lie, if not in
    `backup_root`. Raises DestinationInUse, DestinationUnusable or BadRequest.
    """
    directory = (to or _new_name(settings, plan)).absolute().resolve()
    placed = resolve_places(plan.base, tablespaces or {})
    for place in (directory, *placed.values()):
        check_directory(settings, place)
    check_apart(directory, placed)
    _check_space(layout or Layout(settings.backup_root), plan, directory, placed)
    if port is None:
        port = free_port()
    else:
        check_port(port)
    return Destination(directory, port, keep_running, placed)


def check_directory(settings: Settings, directory: Path) -> None:
    """Check all of a directory but its room, for which one needs a plan. Raises as `choose_destination`."""
    directory = directory.absolute().resolve()
    _check_name(directory)
    _check_place(settings, directory)
    _check_empty(directory)
    _check_reach(directory, server_account(settings.run_as))


def claim(destination: Destination, plan: Plan, account: Account) -> None:
    """Create the directory, marked as incomplete, with room for what will be in it.

    Raises DestinationInUse if it is not empty, or another restore claims it at this moment.
    """
    directory = destination.directory
    for place in reversed(destination.directories):
        make_parents(place.parent)
        if place.is_dir():
            _check_empty(place)
        else:
            place.mkdir(mode=0o700)
            durable.fsync_directory(place.parent)
        _mark(place, destination, plan.database, str(plan.target))
    # Ours, so that no server can change what stands beside its data; open to its group, to pass.
    _open_to_group(directory, account)
    destination.tablespaces.mkdir(mode=0o700)
    _open_to_group(destination.tablespaces, account)
    for path in (destination.data_directory, destination.wal, destination.run):
        make_owned_directory(path, account)
    # A person who starts the server later, with pg_ctl and as its user, goes on with this log.
    destination.log_file.touch(mode=0o600)
    give(destination.log_file, account)


def claim_again(destination: Destination, database: str, wanted: str, account: Account) -> None:
    """Mark a restore that is whole as incomplete again, because it is going on to what is `wanted`.

    Raises DestinationInUse if somebody else does that at this moment.
    """
    _mark(destination.directory, destination, database, wanted)
    make_owned_directory(destination.wal, account)


def said_incomplete(destination: Destination) -> str:
    """Return what to add to an error after which a directory is left incomplete."""
    places = ", ".join(str(place) for place in destination.placed.values())
    return (
        f" {destination.directory} is marked {INCOMPLETE}: delete it before you restore there again "
        f"(its log is {destination.log_file.name})."
        + (f" So are the directories of its tablespaces: {places}." if places else "")
    )


def check_room_for_wal(directory: Path, plan: Plan) -> None:
    """Raise DestinationUnusable if the WAL of a plan does not fit where the base is already."""
    free = _free_bytes(directory)
    needed = min(plan.wal_bytes, AHEAD_BYTES) + min(plan.wal_bytes, REPLAYED_WAL_KEPT) + _SPARE_BYTES
    if free < needed:
        raise DestinationUnusable(
            f"{directory} has {show_bytes(free)} free, and going on needs {show_bytes(needed)} for its WAL, "
            "and some to spare",
            remedy="Make room. Nothing was touched.",
        )


def space_needed(plan: Plan) -> int:
    """Return how many bytes a restore takes at its peak: base, WAL ready and replayed, and more."""
    size = plan.base.wal_segment_size
    carried = sum(segment.place == InBase(plan.base.day) for segment in plan.segments) * size
    fed = plan.wal_bytes - carried
    base = plan.base.uncompressed_bytes
    return base + carried + min(fed, AHEAD_BYTES) + min(fed, REPLAYED_WAL_KEPT) + base // 20 + _SPARE_BYTES


def fits_a_socket(directory: Path, port: int) -> bool:
    """Tell whether a server on `port` can have its Unix socket in `directory`."""
    return len(os.fsencode(directory / f".s.PGSQL.{port}")) <= _SOCKET_PATH_BYTES


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on a port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as postgres does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _new_name(settings: Settings, plan: Plan) -> Path:
    match plan.target:
        case LatestTarget():
            stamp = f"latest-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        case TimeTarget() | HourTarget():
            stamp = f"{plan.target.moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        case LsnTarget(lsn):
            stamp = f"lsn-{lsn}".replace("/", "-")
        case XidTarget(xid):
            stamp = f"xid-{xid}"
        case NameTarget(name):
            stamp = "point-" + re.sub(r"[^A-Za-z0-9_-]", "_", name)
        case ImmediateTarget():
            stamp = f"base-{plan.base.day}"
    first = path = settings.restore_root / f"{plan.database}-{stamp}"
    number = 1
    while path.exists() or path.is_symlink():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def _check_name(directory: Path) -> None:
    if any(not character.isprintable() for character in str(directory)):
        raise BadRequest(
            f"{str(directory)!r} has a character that PostgreSQL's configuration cannot hold",
            remedy="Name a directory without line breaks and other control characters.",
        )


def _check_place(settings: Settings, directory: Path) -> None:
    root = settings.backup_root.resolve()
    if directory == root or root in directory.parents:
        raise DestinationInUse(
            f"{directory} lies in the backups themselves ({root})",
            remedy="Name a directory elsewhere, or none: then a new one is made in restore_root "
            f"({settings.restore_root}). Nothing was touched.",
        )
    for place in (directory, *directory.parents):
        if os.path.lexists(place / "PG_VERSION"):
            raise DestinationInUse(
                f"{directory} lies in the data directory of a PostgreSQL cluster ({place})",
                remedy="A restore never goes into or over another cluster: name a directory beside it. "
                "Nothing was touched.",
            )


def _check_empty(directory: Path) -> None:
    try:
        found = sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise DestinationInUse(
            f"{directory} is a file", remedy="Name a directory that does not exist yet. Nothing was touched."
        ) from None
    except PermissionError:
        raise DestinationUnusable(
            f"{directory} cannot be read", remedy="Name a directory of your own. Nothing was touched."
        ) from None
    if not found:
        return
    if INCOMPLETE in found:
        server = _process_in(directory / "data" / "postmaster.pid")
        raise DestinationInUse(
            f"{directory} holds a restore that has not finished (see its file {INCOMPLETE})"
            + (f", and process {server} still runs as its server" if server else ""),
            remedy="If that restore is still running, wait for it. If it was interrupted, "
            + (f"end its server (kill -QUIT {server}), " if server else "")
            + "delete the directory or name another one, and restore again. Nothing was touched.",
        )
    hint = " A file system's own top directory is never empty: name one below it." * (found == ["lost+found"])
    raise DestinationInUse(
        f"{directory} is not empty (it holds {', '.join(found[:3])}{', …' if len(found) > 3 else ''})",
        remedy="A restore needs a directory of its own: name one that does not exist yet, or none, and a new "
        f"one is made in restore_root.{hint} Nothing was touched.",
    )


def _process_in(file: Path) -> int | None:
    try:
        number = int(file.read_text().partition("\n")[0])
        os.kill(number, 0)
    except PermissionError:
        return None
    except (OSError, ValueError):
        return None
    return number


def _check_reach(directory: Path, account: Account) -> None:
    """Check that we can create the directory, and that the server's account can get there."""
    above = _existing(directory.parent)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise DestinationUnusable(
            f"{directory} cannot be created: {above} is not a directory in which this user can write",
            remedy="Name another directory, or set restore_root to one that this user owns. "
            "Nothing was touched.",
        )
    if not account.switch or _enters(account, above):
        return
    blocking = next(place for place in (*reversed(above.parents), above) if not _enters(account, place))
    raise DestinationUnusable(
        f"{directory} is out of reach for the user {account.name}, whom servers run as, because this runs "
        f"as root: {blocking} is closed to that user",
        remedy=f"Name a directory elsewhere, let others pass (chmod o+x '{blocking}'), or set run_as to a "
        "user who may. Nothing was touched.",
    )


def _enters(account: Account, directory: Path) -> bool:
    return run(account, ["/bin/sh", "-c", 'cd -- "$1"', "sh", directory]).returncode == 0


def _check_space(layout: Layout, plan: Plan, directory: Path, placed: Mapping[int, Path]) -> None:
    """Check that each file system has room for all that goes there."""
    apart = sizes(layout, plan.base) if placed else {}
    elsewhere = {place: apart.get(oid, 0) for oid, place in placed.items()}
    wanted = {directory: space_needed(plan) - sum(elsewhere.values())}
    wanted |= {place: size + size // 20 for place, size in elsewhere.items()}
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for path, size in wanted.items():
        place = _existing(path)
        device = place.stat().st_dev
        places.setdefault(device, place)
        needed[device] = needed.get(device, 0) + size
    for device, place in places.items():
        free = _free_bytes(place)
        if free < needed[device]:
            raise DestinationUnusable(
                f"{place} has {show_bytes(free)} free, and this restore needs {show_bytes(needed[device])}"
                f"{' there' if placed else ''}: {show_bytes(plan.base.uncompressed_bytes)} of base backup, "
                f"{show_bytes(plan.wal_bytes)} of WAL (twice while it is replayed), and some to spare"
                + (
                    f"; {show_bytes(sum(elsewhere.values()))} of it go to tablespaces elsewhere"
                    if placed
                    else ""
                ),
                remedy="Make room, or name a directory on a larger file system. Nothing was touched.",
            )


def check_port(port: int) -> None:
    """Raise DestinationInUse if no server can listen on a port of 127.0.0.1 now, or BadRequest."""
    if not 0 < port < 65536:
        raise BadRequest(f"{port} is not a TCP port", remedy="Ports go from 1 to 65535.")
    if not port_is_free(port):
        raise DestinationInUse(
            f"the port {port} of 127.0.0.1 is taken, or not open to this user",
            remedy="Name another one, or none: then a new restore takes one that is free. "
            "Nothing was touched.",
        )


def _free_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def _existing(path: Path) -> Path:
    while not os.path.lexists(path):
        path = path.parent
    return path


def make_parents(directory: Path) -> None:
    """Create missing directories above the restore, open to everybody: the restore itself is not."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
        durable.fsync_directory(path.parent)


def _mark(directory: Path, destination: Destination, database: str, wanted: str) -> None:
    begun = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    text = (
        f"This directory is a restore of {database} that has not finished, or was interrupted.\n"
        + (f"It holds a tablespace of {destination.directory}.\n" * (directory != destination.directory))
        + "It is not a database. Do not start a server here, and do not copy it.\n"
        "\n"
        f"Wanted: {wanted}\n"
        f"Begun:  {begun}, by process {os.getpid()} on {socket.gethostname()}\n"
        "\n"
        "If that process is gone: if data/postmaster.pid exists, end the server that its first line\n"
        "names (kill -QUIT); then delete this directory, and restore again.\n"
    )
    try:
        descriptor = os.open(directory / INCOMPLETE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise DestinationInUse(
            f"another restore has just begun in {directory}",
            remedy="Name another directory. Nothing was touched.",
        ) from None
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    durable.fsync_directory(directory)


def _open_to_group(path: Path, account: Account) -> None:
    if account.switch:
        os.chown(path, -1, account.gid)
    path.chmod(0o750)
