"""PostgreSQL's configuration files as text: what a line sets, and lines taken out of force.

A line is never removed, only made a comment that says why, so that a person still sees what the
source had. Files are read and written as bytes that need not be in any encoding.
Source: PostgreSQL's src/backend/utils/misc/guc-file.l.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.postgres.account import Account

MAIN = "postgresql.conf"
AUTO = "postgresql.auto.conf"
"""Written by ALTER SYSTEM; it beats the main file."""

MARK = "# pitr restore: "

_LINE = re.compile(
    r"""[ \t\r\f]*
        (?P<name>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)?)
        [ \t\r\f]*=?[ \t\r\f]*
        (?P<value>'(?:[^'\\\n]|\\.|'')*'|[^\s#']+)?""",
    re.VERBOSE,
)
_INCLUDES = frozenset({"include", "include_if_exists", "include_dir"})


@dataclass(frozen=True, slots=True)
class ConfFile:
    """One configuration file that belongs to `account`."""

    path: Path
    account: Account

    def read(self) -> str:
        """Return the text; nothing, if there is no such file."""
        try:
            return self.path.read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""

    def write(self, text: str) -> None:
        """Replace the file. It is never written through a link, and never synced."""
        self.path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self.path, flags, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            if self.account.switch:
                os.fchown(file.fileno(), self.account.uid, self.account.gid)

    def disable(self, unwanted: Callable[[str, str], bool], why: str) -> list[str]:
        """Make comments of the lines for which `unwanted(name, value)`; return them."""
        lines = self.read().splitlines()
        disabled = []
        for number, line in enumerate(lines):
            found = parse_line(line)
            if found is not None and unwanted(*found):
                disabled.append(line.strip())
                lines[number] = f"{MARK}{why}: {line.strip()}"
        if disabled:
            self.write("\n".join(lines) + "\n")
        return disabled

    def disable_line(self, number: int, why: str) -> None:
        """Make a comment of one line, counted from 1, whatever it says."""
        lines = self.read().splitlines()
        if 0 < number <= len(lines):
            lines[number - 1] = f"{MARK}{why}: {lines[number - 1].strip()}"
            self.write("\n".join(lines) + "\n")


def parse_line(line: str) -> tuple[str, str] | None:
    """Return the name, in lower case, and the value of a line that sets something."""
    match = _LINE.match(line)
    if match is None:
        return None
    value = match["value"] or ""
    if value.startswith("'"):
        value = re.sub(r"\\(.)", r"\1", value[1:-1].replace("''", "'"))
    return match["name"].lower(), value


def format_settings(settings: Mapping[str, str]) -> str:
    """Return lines that set each name to its value. Raises ValueError for a line break in a value."""
    if any("\n" in value for value in settings.values()):
        raise ValueError("a setting cannot hold a line break")
    return "".join(f"{name} = '{_escaped(value)}'\n" for name, value in settings.items())


def confine_includes(main: Path, data_directory: Path, account: Account) -> list[str]:
    """Let the configuration include only files that came with the data directory.

    Others do not exist here, or belong to another cluster whose administrator may change them.
    Returns the lines that were taken out of force.
    """
    disabled: list[str] = []
    seen: set[Path] = set()
    waiting = [main]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        file = ConfFile(path, account)

        def leads_out(name: str, value: str, here: Path = path.parent) -> bool:
            return name in _INCLUDES and not _lies_in(here / value, data_directory)

        disabled += file.disable(leads_out, "only what came with the base backup is included")
        waiting += _included(file)
    return disabled


def _included(file: ConfFile) -> Iterator[Path]:
    for line in file.read().splitlines():
        name, value = parse_line(line) or ("", "")
        target = file.path.parent / value
        if name == "include_dir":
            yield from sorted(path for path in target.glob("*.conf") if not path.name.startswith("."))
        elif name in _INCLUDES and target.is_file():
            yield target


def all_files(data_directory: Path, account: Account) -> Iterable[ConfFile]:
    """Yield every configuration file of a cluster whose includes are confined."""
    waiting, seen = [data_directory / MAIN, data_directory / AUTO], set()
    while waiting:
        path = waiting.pop()
        if path not in seen and path.is_file():
            seen.add(path)
            yield ConfFile(path, account)
            waiting += _included(ConfFile(path, account))


def _lies_in(path: Path, data_directory: Path) -> bool:
    return path.exists() and path.resolve().is_relative_to(data_directory.resolve())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
