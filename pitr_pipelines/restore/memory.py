"""How much memory this machine, or this container, can give to another server now."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def available_memory() -> int:
    """Return, in bytes, what can be used without swapping, within this container's limit."""
    return min(_bounds(), default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _bounds() -> Iterator[int]:
    try:
        match = re.search(r"MemAvailable:\s*(\d+) kB", _MEMINFO.read_text())
        if match:
            yield int(match[1]) * 1024
    except OSError:
        pass  # no Linux
    for path in _LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():  # else it is "max"
            yield int(limit)
