"""A page as a test reads it: parsed strictly, element by element."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "hr", "col"}
_INLINE = {"a", "b", "code", "span", "strong"}


@dataclass
class Element:
    """One element: its name, attributes, the elements in it, and the text directly and deeply in it."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    parts: list[str | Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, spaces as one."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> list[str]:
        found = []
        for part in self.parts:
            if isinstance(part, str):
                found.append(part)
            else:
                found += part._texts() if part.name in _INLINE else [" ", *part._texts(), " "]
        return found

    def all(self, name: str | None = None, class_: str | None = None) -> list[Element]:
        """Every element in it of a name and of a class."""
        found = []
        for child in self.children:
            classes = child.attributes.get("class", "").split()
            if name in (None, child.name) and (class_ is None or class_ in classes):
                found.append(child)
            found += child.all(name, class_)
        return found

    def by_id(self, wanted: str) -> Element:
        (found,) = [one for one in self.all() if one.attributes.get("id") == wanted]
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        self.open[-1].parts.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def parse_page(text: str) -> Element:
    """Parse a page. Fails unless every element is closed where it must be."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert [element.name for element in parser.open] == ["document"]
    return parser.root
