"""HTML that is escaped by construction: whatever is not markup yet becomes text.

Every name, path and message that a page shows goes through `tag`, so none of them can open an element,
close an attribute, or turn the reading direction around. Nothing here knows what a page is about.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

_MOMENT = re.compile(r"(\b\d{4}-\d\d-\d\d(?:-\d\d)?\b|\b\d\d:\d\d:\d\d(?:[+-]\d\d:\d\d)?\b)")
_VOID = frozenset({"br", "col", "hr", "link", "meta"})
_KEPT = frozenset("\n\t")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co"})
"""Unicode's categories of what must not reach a page: controls, among them those that reverse the
direction of writing, and halves of surrogate pairs, as names of files have that are no UTF-8."""


class Markup(str):
    """Text that is markup already, and is not escaped again. Only this module makes it of other text."""

    __slots__ = ()


Content = str | int | float | None
"""What an element may hold: text, a number, or markup; None is nothing."""


def escaped(text: str) -> Markup:
    """Return text as markup that shows exactly it; what cannot be shown is a replacement character."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if c not in _KEPT and unicodedata.category(c) in _UNSEEN else c
        for c in text
    )
    return Markup(html.escape(shown, quote=True))


def joined(parts: Iterable[Content]) -> Markup:
    """Return parts one after the other; text among them is escaped."""
    return Markup("".join(_content(part) for part in parts))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """Return one element.

    In names of attributes, an underscore at the end is dropped and any other is a hyphen (`class_`,
    `aria_label`). An attribute that is None or False is left out; True stands without a value.
    """
    opened = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        opened += f" {attribute}" if value is True else f' {attribute}="{_content(value)}"'
    if name in _VOID:
        return Markup(f"<{opened}>")
    return Markup(f"<{opened}>{joined(content)}</{name}>")


def table(caption: str, head: Iterable[str], rows: Iterable[Markup], class_: str | None = None) -> Markup:
    """Return a table of rows with a caption and named columns."""
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
        tag("tbody", *rows),
        class_=class_,
    )


def scrolled(name: str, content: Markup) -> Markup:
    """Let something wide scroll by itself on a narrow screen, by keyboard too."""
    return tag("div", content, class_="scroll", role="region", aria_label=name, tabindex="0")


def prose(text: str) -> Markup:
    """Return text in which `words in backticks` are commands or names, as in the texts of our errors.

    Days, hours and times in it are never broken over two lines.
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text]
    return joined(tag("code", part) if index % 2 else _unbroken(part) for index, part in enumerate(parts))


def verbatim(text: str) -> Markup:
    """Take text for markup as it is. Only for what this package itself ships: its style sheet."""
    return Markup(text)


def _unbroken(text: str) -> Markup:
    parts = _MOMENT.split(text)
    return joined(
        tag("span", part, class_="moment") if index % 2 else part for index, part in enumerate(parts)
    )


def _content(part: Content) -> str:
    if part is None:
        return ""
    if isinstance(part, Markup):
        return part
    if isinstance(part, float):
        return f"{part:.2f}".rstrip("0").rstrip(".")
    return escaped(str(part))
