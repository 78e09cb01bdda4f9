"""tablespace_map: where a base backup's tablespaces are to lie.

At the start of recovery PostgreSQL reads this file, removes what is at `pg_tblspc/<oid>` and makes
it a symbolic link to the location named here. A restore to another place must therefore rewrite
it, or the restored server would write into the tablespaces of the original.
Source: do_pg_backup_start() and read_tablespace_map() in src/backend/access/transam.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

TABLESPACE_MAP = "tablespace_map"

_LINE = re.compile(rb"([0-9]+) ((?:[^\\\r\n]|\\.)+)[\r\n]+", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SPECIAL = re.compile(rb"([\\\r\n])")


def parse_tablespace_map(content: bytes) -> dict[int, str]:
    """Return the location of each tablespace by its oid.

    Raises ValueError if it is not a tablespace map, or a location is not UTF-8.
    """
    locations: dict[int, str] = {}
    position = 0
    while position < len(content):
        line = _LINE.match(content, position)
        if line is None:
            raise ValueError(f"not a line of a tablespace map: {content[position:][:80]!r}")
        locations[int(line[1])] = _ESCAPED.sub(rb"\1", line[2]).decode()
        position = line.end()
    return locations


def format_tablespace_map(locations: Mapping[int, str]) -> bytes:
    """Return the file that makes PostgreSQL link each tablespace to its location."""
    return b"".join(
        b"%d %s\n" % (oid, _SPECIAL.sub(rb"\\\1", os.fsencode(location)))
        for oid, location in locations.items()
    )
