"""Where the tablespaces of a base backup go, if somebody wants them elsewhere than the restore.

What is asked for is read against what the base backup has; nothing here touches a file system but to
look. Whether the directories can be used is for whoever makes them: see destination.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import BadRequest, DestinationInUse
from pitr_pipelines.postgres.backup_manifest import parse_manifest

_VERSION_DIRECTORY = re.compile(r"PG_\d+_\d+")
_WHERE = "<the restore's directory>/tablespaces"


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Read `OID_OR_LOCATION=DIRECTORY`, as it is given at a terminal. Raises BadRequest."""
    found: dict[str, str] = {}
    for assignment in assignments:
        # A location may hold a =, but hardly "=/".
        which, equals, place = assignment.rpartition("=/")
        if not equals or not which:
            raise BadRequest(
                f"{assignment!r} does not say which tablespace goes where",
                remedy="Write --tablespace OID=DIRECTORY, or the location that the original has instead of "
                "the oid; the directory with its full path.",
            )
        if which in found:
            raise BadRequest(f"the tablespace {which} is given two places", remedy="Give it one.")
        found[which] = f"/{place}"
    return found


def resolve_places(base: BaseRecord, wanted: Mapping[str, str]) -> dict[int, Path]:
    """Return the place of each tablespace that is given one, by oid.

    `wanted` gives a directory by oid, or by location on the source. Raises BadRequest if the base has
    no such tablespace, one is named twice, or a directory is not an absolute path.
    """
    places: dict[int, Path] = {}
    for which, directory in wanted.items():
        fitting = {t.oid for t in base.tablespaces if which in (str(t.oid), t.location)}
        fitting |= {t.oid for t in base.tablespaces if which.rstrip("/") == t.location}
        if not fitting:
            there = ", ".join(f"{t.oid} ({t.location})" for t in base.tablespaces)
            raise BadRequest(
                f"the base backup of {base.day} has no tablespace {which}",
                remedy=f"It has {there}." if there else "It has none: leave the mapping out.",
            )
        if not directory.startswith("/"):
            raise BadRequest(
                f"the directory {directory!r} for the tablespace {which} is not an absolute path",
                remedy="Write it from / on.",
            )
        (oid,) = fitting
        if oid in places:
            raise BadRequest(f"the tablespace {oid} is given two places", remedy="Give it one.")
        places[oid] = Path(directory).resolve()
    return places


def check_apart(directory: Path, places: Mapping[int, Path]) -> None:
    """Raise DestinationInUse unless every place is outside the others, the restore, and other tablespaces."""
    taken: list[tuple[str, Path]] = [("the restore's own directory", directory)]
    for oid, place in places.items():
        for what, other in taken:
            if place == other or place in other.parents or other in place.parents:
                raise DestinationInUse(
                    f"{place}, for the tablespace {oid}, and {what} ({other}) are not apart",
                    remedy="Give each tablespace a directory of its own, outside the restore's. Without a "
                    f"place of its own it goes to {_WHERE}. Nothing was touched.",
                )
        for above in place.parents:
            if above.is_dir() and _holds_tablespace(above):
                raise DestinationInUse(
                    f"{place} lies in a tablespace of a PostgreSQL cluster ({above})",
                    remedy="Name a directory elsewhere. Nothing was touched.",
                )
        taken.append((f"that of the tablespace {oid}", place))


def sizes(layout: Layout, base: BaseRecord) -> dict[int, int]:
    """Return how many bytes each tablespace of a base backup has, by its manifest; {} if that is unreadable.

    A damaged manifest is for those to find who check the backup.
    """
    try:
        manifest = parse_manifest((layout.base(base.database, base.day) / "backup_manifest").read_bytes())
    except (OSError, ValueError):
        return {}
    found = dict.fromkeys((tablespace.oid for tablespace in base.tablespaces), 0)
    for name, file in manifest.files.items():
        top, _, rest = name.partition("/")
        oid = rest.partition("/")[0]
        if top == "pg_tblspc" and oid.isdigit() and int(oid) in found:
            found[int(oid)] += file.size_bytes
    return found


def place_lines(base: BaseRecord, places: Mapping[int, Path]) -> Iterator[str]:
    """Say where each tablespace goes."""
    for tablespace in base.tablespaces:
        place = places.get(tablespace.oid, f"{_WHERE}/{tablespace.oid}")
        yield f"{tablespace.oid}, from {tablespace.location}, to {place}"


def _holds_tablespace(directory: Path) -> bool:
    try:
        return any(_VERSION_DIRECTORY.fullmatch(entry.name) for entry in directory.iterdir())
    except OSError:
        return False
