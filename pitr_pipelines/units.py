"""Sizes, rates and durations as people read them."""

from __future__ import annotations

from datetime import timedelta


def show_bytes(size_bytes: float) -> str:
    """Return a size in the unit that leaves one to four digits: `16 MiB`, `1.4 GiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            shown = f"{size:.0f}" if unit == "B" or size >= 100 else f"{size:.1f}".removesuffix(".0")
            return f"{shown} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def show_duration(duration: timedelta | float) -> str:
    """Return a duration (or seconds) in its two largest units: `48 s`, `3 min 20 s`, `2 d 4 h`."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"
