"""The page of a fortnight with gaps: it says what can be restored, how fresh it is, and what is wrong."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr_pipelines.catalog import report_page
from pitr_pipelines.catalog.calls import CallDay, CallOutcome, Calls
from pitr_pipelines.catalog.coverage import Window
from pitr_pipelines.catalog.report import first_day, make_page, write_report
from pitr_pipelines.catalog.report_calendar import verdict_on
from pitr_pipelines.catalog.report_facts import DatabaseFacts, Level, Problem
from pitr_pipelines.catalog.report_page import Page, render
from pitr_pipelines.catalog.report_timeline import rows_of
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.offsite.call_days import read_calls
from pitr_pipelines_tests.catalog.fortnight import DATABASES, FAILED_DAY, NOW, SAID, day_at, make_fortnight
from pitr_pipelines_tests.html_pages import Element, parse_page
from pitr_pipelines_tests.wal_files import Store, at


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_fortnight(tmp_path_factory.mktemp("fortnight"))


def page_of(store: Store, days: int = 14) -> str:
    calls = read_calls(store.settings, now=NOW, since=first_day(store.settings, now=NOW, days=days))
    return render(make_page(store.settings, now=NOW, calls=calls, days=days))


@pytest.fixture(scope="module")
def document(store: Store) -> Element:
    return parse_page(page_of(store))


def section(document: Element, database: str) -> Element:
    return document.by_id(f"db-{database}")


def verdict(document: Element, database: str) -> str:
    (found,) = section(document, database).all("p", "verdict")
    return found.text


def titles(part: Element, kind: str) -> list[str]:
    """What the shapes of one kind in a picture say when they are pointed at."""
    return [one.all("title")[0].text for one in part.all(class_=kind) if one.all("title")]


def test_one_sentence_says_what_can_be_restored_how_fresh_and_what_is_wrong(document: Element) -> None:
    assert verdict(document, "order-db") == (
        "Act now order-db can be restored to any moment from 2026-01-16 04:10:00+01:00 to "
        "2026-01-29 15:18:59+01:00, which is 1 min 1 s ago, except 22 h 10 min in 1 gap; the last drill of "
        "order-db failed: pg_amcheck found damage in <public.orders> (and 3 other problems)."
    )
    assert verdict(document, "calm-db").startswith("All is well calm-db can be restored to any moment from")
    assert verdict(document, "calm-db").endswith("nothing is wrong.")
    assert verdict(document, "empty-db").startswith(
        "Act now Nothing of empty-db can be restored: there is no"
    )


def test_the_overview_names_every_database_and_leads_to_it(document: Element) -> None:
    links = [link for link in document.all("a") if link.attributes["href"].startswith("#db-")]
    assert [link.text for link in links] == list(DATABASES)
    assert "off-site copy All is well last confirmed: 2026-01-28" in document.all("table")[0].text
    for link in links:
        assert document.by_id(link.attributes["href"].removeprefix("#")).name == "section"


def test_the_timeline_shows_hours_that_are_missing_open_and_due(document: Element) -> None:
    (picture,) = section(document, "order-db").all("svg", "timeline")
    assert titles(picture, "missing") == [
        "missing: 2026-01-26 06:00:00+01:00 to 2026-01-26 11:00:00+01:00, 5 hours"
    ]
    assert [title.rsplit(",", 1)[0] for title in titles(picture, "open")] == [
        "open: 2026-01-29 15:00:00+01:00 to 2026-01-29 16:00:00+01:00, 1 hour",
        "open: 2026-01-21 18:00:00+01:00 to 2026-01-21 19:00:00+01:00, 1 hour",
    ]
    (calm,) = section(document, "calm-db").all("svg", "timeline")
    assert titles(calm, "due") == ["due: 2026-01-29 15:00:00+01:00 to 2026-01-29 16:00:00+01:00, 1 hour"]
    assert not titles(calm, "missing")


def test_the_gap_is_drawn_over_the_days_that_it_takes_away(document: Element) -> None:
    (picture,) = section(document, "order-db").all("svg", "timeline")
    assert (
        titles(picture, "hole")
        == [
            "CANNOT BE RESTORED: 2026-01-26 05:59:58+01:00 to 2026-01-27 04:10:00+01:00",
        ]
        * 2
    )
    assert [label.text for label in picture.all("text", "lost")] == ["not restorable"]
    assert "Not restorable: 2026-01-26 05:59:58+01:00" in picture.all("desc")[0].text
    assert len(titles(picture, "restorable")) == 14


def test_base_backups_and_drills_are_marked(document: Element) -> None:
    (picture,) = section(document, "order-db").all("svg", "timeline")
    bases = titles(picture, "base")
    assert len(bases) == 13
    assert not [title for title in bases if f"base backup of {day_at(FAILED_DAY)}" in title]
    assert "779 MiB in 4 min 0 s" in bases[0]
    assert len(titles(picture, "passed")) == 2
    assert titles(picture, "failed") == ["drill failed, 2026-01-28 06:01:30+01:00"]


def test_no_shape_of_a_timeline_leaves_the_picture(document: Element) -> None:
    for picture in document.all("svg", "timeline"):
        _, _, width, height = (float(number) for number in picture.attributes["viewbox"].split())
        for shape in picture.all("rect"):
            x, y, w, h = (float(shape.attributes[name]) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width
            assert 0 <= y <= y + h <= height


def test_every_problem_says_what_to_do(document: Element) -> None:
    (problems,) = section(document, "order-db").all("table", "problems")
    rows = [row.text for row in problems.all("tbody")[0].all("tr")]
    assert len(rows) == 5
    assert all(" Do: " in row for row in rows)
    assert rows[0].startswith("Act now the last drill of order-db failed")
    assert "REINDEX it" in rows[0]
    assert [row for row in rows if "5 hours of order-db are not bundled: 2026-01-26-05" in row]
    assert [
        row for row in rows if "1 hour of order-db ended long ago and is still open: 2026-01-21-17" in row
    ]
    assert [row for row in rows if row.startswith(f"Note there is no base backup of {day_at(FAILED_DAY)}")]
    (gaps,) = section(document, "order-db").all("table", "gaps")
    row = gaps.all("tbody")[0].text
    assert "2026-01-26 05:59:58+01:00" in row
    assert "2026-01-27 04:10:00+01:00" in row
    assert re.findall("[0-9A-F]{24}", row) == ["00000001000000000000010D", "000000010000000000000111"]


def test_sizes_are_shown_day_by_day(document: Element) -> None:
    (sizes,) = section(document, "order-db").all("table", "numbers")
    rows = [[cell.text for cell in row.children] for row in sizes.all("tbody")[0].all("tr")]
    assert len(rows) == 14
    assert rows[13 + FAILED_DAY][:2] == [str(day_at(FAILED_DAY)), "\N{EN DASH}"]
    assert rows[-1][0:2] == ["2026-01-29", "779 MiB"]
    assert rows[-1][4] == "15"
    absent = section(document, "order-db").all("path", "absent")
    assert [bar.text for bar in absent][-1] == f"{day_at(FAILED_DAY):%d %b}: no base backup"


def test_drills_are_shown_with_what_they_took(document: Element) -> None:
    text = section(document, "order-db").text
    assert "passed recovered in 2 min 20 s" in text
    assert "failed pg_amcheck found damage in <public.orders>" in text


def test_the_calendar_shows_a_day_of_every_kind(document: Element) -> None:
    days = document.all("td", "call-day")
    assert [day.all("span", "number")[0].text for day in days] == [str(n) for n in range(16, 30)]
    found = {int(day.all("span", "number")[0].text): day.all("span", "word")[0].text for day in days}
    assert found == {
        16: "none",
        17: "confirmed",
        18: "confirmed",
        19: "refused",
        20: "confirmed",
        21: "none",
        22: "unknown",
        23: "confirmed",
        24: "claimed",
        25: "confirmed",
        26: "unreadable",
        27: "confirmed",
        28: "confirmed",
        29: "sent",
    }
    (said,) = document.all("table", "said")
    assert SAID in said.text
    assert "The day is taken, nothing was sent." in said.text
    text = document.by_id("offsite").text
    assert text == "The off-site copy: one call a day"
    assert "The last one that the store confirmed is of 2026-01-28 , at" in document.text.replace(
        "28,", "28 ,"
    )


def test_without_an_off_site_copy_the_page_says_so(tmp_path: Path) -> None:
    store = make_fortnight(tmp_path, offsite=None)
    document = parse_page(page_of(store))
    assert "No off-site copy is configured: every backup is on this machine only." in document.text
    assert not document.all("td", "call-day")
    assert not document.all("path", "call")


@pytest.mark.parametrize(
    ("days_ago", "today", "level"),
    [
        (1, CallOutcome.NONE, Level.GOOD),
        (1, CallOutcome.SENT, Level.GOOD),
        (0, CallOutcome.CONFIRMED, Level.GOOD),
        (1, CallOutcome.REFUSED, Level.LOOK),
        (1, CallOutcome.UNKNOWN, Level.LOOK),
        (2, CallOutcome.NONE, Level.LOOK),
        (5, CallOutcome.SENT, Level.ACT),
        (None, CallOutcome.REFUSED, Level.ACT),
    ],
)
def test_the_off_site_copy_has_a_verdict_of_its_own(
    days_ago: int | None, today: CallOutcome, level: Level
) -> None:
    days = {NOW.date(): CallDay(NOW.date(), today, NOW)}
    if days_ago is not None:
        confirmed = NOW - timedelta(days=days_ago)
        days[confirmed.date()] = CallDay(confirmed.date(), CallOutcome.CONFIRMED, confirmed)
    assert verdict_on(Calls.on(NOW.date(), "UTC", days.values()), NOW) is level


def test_before_its_first_call_the_off_site_copy_is_something_to_look_at() -> None:
    assert verdict_on(Calls.on(NOW.date(), "UTC", []), NOW) is Level.LOOK
    assert verdict_on(None, NOW) is Level.NOTE


def test_it_needs_nothing_but_itself(store: Store, document: Element) -> None:
    names = {element.name for element in document.all()}
    assert not names & {"script", "img", "iframe", "object", "embed", "base", "form"}
    for element in document.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "action", "xlink:href"):
                assert value.startswith("#") or value == "data:,"
    style = document.all("style")[0].text
    assert "@import" not in style
    assert set(re.findall(r"url\((.*?)\)", style)) == {"#hatch", "#cross", "#dots"}
    assert "//" not in style
    policy = document.all("meta")[2].attributes
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'")
    for pattern in ("hatch", "cross", "dots"):
        assert document.by_id(pattern).name == "pattern"


def test_it_can_be_heard_as_well_as_seen(document: Element) -> None:
    assert document.all("html")[0].attributes["lang"] == "en"
    for picture in document.all("svg"):
        if picture.attributes.get("aria-hidden") != "true":
            assert picture.attributes["role"] == "img"
            assert picture.attributes.get("aria-label") or picture.attributes["aria-labelledby"]
    for held in document.all("table"):
        assert len(held.all("caption")) == 1
        assert all("scope" in head.attributes for head in held.all("th"))
    ids = [element.attributes["id"] for element in document.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    levels = [int(e.name[1]) for e in document.all() if re.fullmatch("h[1-6]", e.name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours written as #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("block", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_can_be_told_from_what_is_behind_them(document: Element, block: int) -> None:
    """4.5 for text, 3 for shapes: WCAG 2, 1.4.3 and 1.4.11."""
    style = document.all("style")[0].text
    variables = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", style)[block])
    )
    for text in ("text", "soft", "link", "good", "look", "act"):
        assert contrast(variables[text], variables["ground"]) >= 4.5, text
    for level in ("good", "look", "act"):
        assert contrast(variables[level], variables[f"{level}-ground"]) >= 4.5, level
        assert contrast(variables["text"], variables[f"{level}-ground"]) >= 4.5, level
    assert contrast(variables["soft"], variables["raised"]) >= 4.5
    assert contrast(variables["act"], variables["missing-ground"]) >= 4.5
    for shape in ("closed", "missing", "restorable", "hole", "mark"):
        assert contrast(variables[shape], variables["ground"]) >= 3, shape


NASTY = st.text(min_size=1, max_size=60) | st.sampled_from(
    ["</style><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;b&gt;", "]]>", "--><!--"]
)


def page_about(database: str, problem: str, said: str) -> Element:
    facts = DatabaseFacts(
        database,
        True,
        NOW,
        (Problem(Level.ACT, problem, problem),),
        windows=(Window(NOW - timedelta(hours=3), NOW, 1),),
    )
    calls = Calls.on(NOW.date(), "UTC", [CallDay(NOW.date(), CallOutcome.REFUSED, NOW, 5, said)])
    return parse_page(render(Page([facts], calls, None, ZoneInfo("Europe/Berlin"), NOW, 2)))


def structure(document: Element) -> list[tuple[str, tuple[str, ...]]]:
    """The elements of a page in order, with the names of their attributes, but for those of running text."""
    return [(e.name, tuple(e.attributes)) for e in document.all() if e.name not in ("code", "span")]


@pytest.fixture(scope="module")
def expected() -> list[tuple[str, tuple[str, ...]]]:
    return structure(page_about("db", "x", "x"))


@settings(deadline=None, max_examples=50)
@given(database=NASTY, problem=NASTY, said=NASTY)
def test_whatever_names_and_problems_hold_the_page_keeps_its_structure(
    expected: list[tuple[str, tuple[str, ...]]], database: str, problem: str, said: str
) -> None:
    assert structure(page_about(database, problem, said)) == expected


def test_one_database_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    store = make_fortnight(tmp_path)
    bundles = store.layout.bundles("calm-db")
    for file in bundles.iterdir():
        file.unlink()
    bundles.rmdir()
    bundles.write_text("a file where a directory should be")
    (store.layout.base_record("young-db", at(13).date())).write_text("{")
    document = parse_page(page_of(store))
    assert "calm-db cannot be read, so it is not known what can be restored" in verdict(document, "calm-db")
    assert "order-db can be restored to any moment" in verdict(document, "order-db")
    assert "backup.json cannot be used" in section(document, "young-db").text


def test_a_record_written_by_hand_cannot_run_anything(tmp_path: Path) -> None:
    store = make_fortnight(tmp_path)
    record = store.layout.bundles("order-db") / "2026-01-20-05.json"
    record.write_text('{"<script>alert(1)</script>": 1}')
    text = page_of(store)
    assert "<script" not in text.lower()


def test_it_is_written_whole_beside_the_manifest_or_where_it_is_wanted(tmp_path: Path) -> None:
    store = make_fortnight(tmp_path)
    assert write_report(store.settings, now=NOW, calls=None) == store.layout.report
    assert store.layout.report == store.settings.backup_root / "manifests" / "report.html"
    assert store.layout.report.read_text().startswith("<!DOCTYPE html>\n<html")
    elsewhere = tmp_path / "mine.html"
    write_report(store.settings, now=NOW, calls=None, output=elsewhere, days=3)
    assert "The last 3 days" in elsewhere.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_absent_volume_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(BadRequest, match="no directory"):
        write_report(store.settings, now=NOW, calls=None)
    assert not store.settings.backup_root.exists()


def test_the_clocks_change_and_every_hour_keeps_its_place() -> None:
    zone = ZoneInfo("Europe/Berlin")
    day = datetime(2026, 3, 29, tzinfo=zone).date()
    spring = {row.day: row for row in rows_of(day - timedelta(days=1), day + timedelta(days=1), zone)}
    assert spring[day].note == "23 hours"
    assert spring[day].end - spring[day].start == timedelta(hours=23)
    assert spring[day - timedelta(days=1)].end == spring[day].start
    autumn = rows_of(datetime(2026, 10, 25).date(), datetime(2026, 10, 25).date(), zone)  # noqa: DTZ001
    assert autumn[0].note == "Oct 2026 25 hours"
    assert autumn[0].x(autumn[0].end) < 345


@pytest.mark.parametrize(("days", "shown"), [(1, 1), (5, 5), (60, 14)])
def test_as_many_days_are_shown_as_asked_for_and_known(store: Store, days: int, shown: int) -> None:
    document = parse_page(page_of(store, days))
    (picture,) = section(document, "calm-db").all("svg", "timeline")
    assert len(picture.all("text", "day")) == shown
    (young,) = section(document, "young-db").all("svg", "timeline")
    assert len(young.all("text", "day")) == 1
    assert not section(document, "empty-db").all("svg", "timeline")


def test_the_calendar_goes_as_far_back_as_the_days_that_are_shown(store: Store) -> None:
    document = parse_page(page_of(store, 60))
    captions = [held.all("caption")[0].text for held in document.all("table", "month-grid")]
    assert captions == ["December 2025", "January 2026"]


def test_the_style_sheet_is_part_of_the_package() -> None:
    assert report_page._style().startswith("/*")
