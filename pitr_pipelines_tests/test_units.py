"""Sizes and durations as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pitr_pipelines.units import show_bytes, show_duration


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (16 << 20, "16 MiB"),
        (500 << 20, "500 MiB"),
        (1_503_238_554, "1.4 GiB"),
        (5 << 40, "5 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert show_bytes(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (48, "48 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3 * 3600 + 25 * 60, "3 h 25 min"),
        (2 * 86400 + 4 * 3600 + 59, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown
    assert show_duration(timedelta(seconds=seconds)) == shown
