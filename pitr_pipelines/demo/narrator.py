"""What the demo prints: its steps with the time they came at, and claims that were checked.

A claim is printed together with the outcome of its check, and remembered: the demo only ends well if
every one of them held.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TextIO

from pitr_pipelines.errors import PitrError
from pitr_pipelines.terminal import table

_MARGIN = " " * 9


class NobodyListens(PitrError):
    """The output is closed: there is no point in going on."""


class Narrator:
    """Tells the story to `out`, a line at a time, with seconds since the beginning in the margin."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out if out is not None else sys.stdout
        self._began = time.monotonic()
        self._deaf = False
        self._chapters = 0
        self.claims = 0
        self.failed: list[str] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._began

    def chapter(self, title: str) -> None:
        """Begin a numbered chapter."""
        self._chapters += 1
        self.plain()
        self.say(f"{self._chapters}. {title}")

    def say(self, text: str) -> None:
        """Say something that happened just now."""
        first, *more = text.splitlines() or [""]
        self.plain(f"{self.elapsed_s:6.1f} s {first}", *(_MARGIN + line for line in more))

    def show(self, lines: Iterable[str]) -> None:
        """Show lines as they are, indented."""
        self.plain(*(f"{_MARGIN}   {line}".rstrip() for line in lines))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Show a table."""
        self.show(table(head, rows))

    def claim(self, text: str, holds: bool, otherwise: str = "") -> None:
        """Claim something that was just checked; `otherwise` says what was found if it does not hold."""
        self.claims += 1
        if holds:
            self.say(f"   ok: {text}")
        else:
            self.failed.append(text)
            self.say(f"   NOT SO: {text}" + (f"\n          {otherwise}" if otherwise else ""))

    def plain(self, *lines: str) -> None:
        """Print lines without a time. Raises NobodyListens, once, if they cannot be printed."""
        if self._deaf:
            return
        try:
            for line in lines or ("",):
                print(line, file=self._out, flush=True)
        except OSError as error:  # as in `make demo | head`
            self._deaf = True
            # What is still in the buffer would make Python complain when it exits.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            raise NobodyListens(
                f"the demo's output cannot be written: {error.strerror}", remedy="Let somebody read it."
            ) from None
