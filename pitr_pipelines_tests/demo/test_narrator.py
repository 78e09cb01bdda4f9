"""What the demo prints is told in order, and a claim that does not hold is never forgotten."""

from __future__ import annotations

import io
import os

import pytest

from pitr_pipelines.demo.narrator import Narrator, NobodyListens


def test_a_claim_that_does_not_hold_is_shown_with_what_was_found_and_remembered() -> None:
    out = io.StringIO()
    narrator = Narrator(out)
    narrator.claim("the sky is blue", True)
    narrator.claim("the table is back", False, "17 rows are missing")
    assert narrator.claims == 2
    assert narrator.failed == ["the table is back"]
    assert "ok: the sky is blue" in out.getvalue()
    assert "NOT SO: the table is back" in out.getvalue()
    assert "17 rows are missing" in out.getvalue()


def test_chapters_are_numbered_and_lines_carry_the_time() -> None:
    out = io.StringIO()
    narrator = Narrator(out)
    narrator.chapter("Once")
    narrator.chapter("Twice")
    assert [line.split(" s ")[1] for line in out.getvalue().splitlines() if line] == ["1. Once", "2. Twice"]


def test_a_closed_output_ends_the_story_once_and_then_keeps_still() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        narrator = Narrator(out)
        with pytest.raises(NobodyListens):
            narrator.say("is anybody there?")
        narrator.say("then not")
        narrator.claim("clearing away goes on", False)
    assert narrator.failed == ["clearing away goes on"]
