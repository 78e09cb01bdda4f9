"""Whatever text is put into a page is shown as that text, and never becomes a part of its structure."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.catalog.markup import Markup, escaped, joined, prose, table, tag
from pitr_pipelines_tests.html_pages import parse_page

ANYTHING = st.text(st.characters() | st.sampled_from("<>&\"'`/=\\\x00\x1b\u202e\ud800"))


def shown(text: str) -> str:
    """What a reader sees of a text: invisible characters are replaced, white space is one space."""
    seen = "".join(
        "\ufffd" if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c
        for c in text
    )
    return " ".join(seen.split())


@given(ANYTHING, ANYTHING)
def test_any_text_is_shown_as_it_is_in_elements_and_attributes(text: str, attribute: str) -> None:
    document = parse_page(tag("p", text, title=attribute, class_="x"))
    (element,) = document.all()
    assert element.text == shown(text)
    assert " ".join(element.attributes["title"].split()) == shown(attribute)
    assert element.attributes["class"] == "x"


@given(ANYTHING)
def test_prose_and_tables_add_only_their_own_elements(text: str) -> None:
    for element in parse_page(tag("div", prose(text))).all("div")[0].all():
        assert element.name in ("code", "span")
    names = {e.name for e in parse_page(table(text, [text], [tag("tr", tag("td", text))])).all()}
    assert names == {"table", "caption", "thead", "tbody", "tr", "th", "td"}


@given(ANYTHING)
def test_every_page_can_be_written_as_utf_8(text: str) -> None:
    assert escaped(text).encode().decode() == escaped(text)


def test_commands_in_texts_stand_out_and_moments_are_not_broken() -> None:
    document = parse_page(
        prose("Run `pitr bundle db --hour 2026-01-29-14` before 2026-01-29 15:00:00+01:00, <now>.")
    )
    assert [code.text for code in document.all("code")] == ["pitr bundle db --hour 2026-01-29-14"]
    assert [span.text for span in document.all("span")] == ["2026-01-29", "15:00:00+01:00"]
    assert document.text.endswith(", <now>.")


def test_an_odd_backtick_is_a_backtick() -> None:
    assert prose("a ` b") == "a ` b"


def test_attributes_that_are_not_there_are_left_out() -> None:
    assert (
        tag("a", None, href=None, hidden=True, draggable=False, tab_index=1.50)
        == '<a hidden tab-index="1.5"></a>'
    )
    assert tag("br") == "<br>"


def test_markup_is_not_escaped_twice() -> None:
    assert joined([tag("b", "<"), "<"]) == "<b>&lt;</b>&lt;"
    assert isinstance(joined([]), Markup)
