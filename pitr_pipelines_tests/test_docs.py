"""What the pages name exists: the files and headings they link to, and the commands that they say to type."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import pitr_pipelines
from pitr_pipelines.cli import main

ROOT = Path(pitr_pipelines.__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`]+)`", re.S)
FOREIGN_OPTIONS = {"--build-arg", "--db-include", "--profile", "--require-hashes", "--volumes"}
"""Of other programs."""
_MENTION = re.compile(r"\bdocs/[\w/-]+\.(?:md|yaml|json)\b")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """Return the page without its fenced blocks."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def commands(text: str) -> Iterator[str]:
    """Yield what a page says to type that begins with `pitr`, in shell blocks and in the running text."""
    for language, block in _FENCE.findall(text):
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                yield from re.findall(
                    r"(?:^|&& |; )(pitr .*?)(?=$| && |; )", re.sub(r"\s#.*$", "", line.strip())
                )
    for inline in _INLINE.findall(without_code(text)):
        for part in " ".join(inline.split()).split(" && "):
            if part.startswith("pitr "):
                yield part


def texts(path: Path) -> Iterator[str]:
    """Yield the strings of a module, with X for what is put into them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "X"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def options_of(command: click.Command) -> Iterator[str]:
    """Yield every option of a command and of those below it."""
    for option in command.params:
        yield from (*option.opts, *option.secondary_opts)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from options_of(below)


def mistake(typed: str) -> str | None:
    """Return what is wrong with a command line, None if the program has such a command with such options."""
    command: click.Command = main
    # What stands for something, as in `pitr offsite list | fetch | restore`, is looked at as far as it goes.
    words = shlex.split(re.split(r"\s[|<>]\s|…", typed.replace("[", " ").replace("]", " "))[0])[1:]
    for word in words:
        if word.startswith("--") and word != "--":
            known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            known |= {name for option in main.params for name in option.opts} | {"--help"}
            if word.split("=")[0].rstrip(".,") not in known:
                return f"{command.name} has no {word}"
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return f"{command.name} has no command {word}"
            command = command.commands[word]
    return None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_page_that_is_named_exists(page: Path) -> None:
    assert [name for name in _MENTION.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_every_page_that_the_program_names_exists() -> None:
    named = {
        name
        for path in (ROOT / "pitr_pipelines").rglob("*.py")
        for name in _MENTION.findall(path.read_text())
    }
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_in_it_can_be_typed(page: Path) -> None:
    wrong = {typed: mistake(typed) for typed in commands(page.read_text())}
    assert {typed: why for typed, why in wrong.items() if why} == {}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_option_in_a_row_about_a_command_is_that_commands(page: Path) -> None:
    wrong = []
    for row in re.findall(r"^\| `(pitr [^`]+)` \|(.*)\|$", page.read_text(), re.M):
        options = re.findall(r"`(--[\w-]+)", row[1])
        wrong += [why for option in options if (why := mistake(f"{row[0].split('[')[0]} {option}"))]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_option_in_it_is_of_some_command(page: Path) -> None:
    named = set(re.findall(r"`(--[\w-]+)[^`.]*`", without_code(page.read_text())))
    assert named - set(options_of(main)) - FOREIGN_OPTIONS == set()


def test_every_command_that_the_program_names_can_be_typed() -> None:
    wrong = {
        typed: why
        for path in sorted((ROOT / "pitr_pipelines").rglob("*.py"))
        for text in texts(path)
        for typed in commands(text)
        if (why := mistake(typed))
    }
    assert wrong == {}


def test_the_list_of_pages_names_each() -> None:
    listed = set(_LINK.findall((ROOT / "docs/README.md").read_text()))
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert listed == pages - {"README.md"}


def test_a_command_or_option_that_there_is_not_is_found() -> None:
    text = "Say `pitr restore order-db --yesterday`, or\n```sh\ncd / && pitr undo   # now\n```\n"
    assert [mistake(typed) for typed in commands(text)] == [
        "main has no command undo",
        "restore has no --yesterday",
    ]
