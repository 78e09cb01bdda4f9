"""Dagster's pages as a user finds their parts: by role, label and text, never by what a build made up.

Nothing here waits for a fixed time: each step waits until the page shows what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from pitr_pipelines.wal.hours import Hour

TIMEOUT_S = 120.0
"""How long a page may take to show what it is to show, on a busy machine."""

expect.set_options(timeout=TIMEOUT_S * 1000)

_TALL = 4200
"""Pixels in which the log of a run is shown whole: it draws only those rows that can be seen."""


class Ui:
    """One window. `shoot` keeps what it shows, under a name that says when in the story that is."""

    def __init__(self, page: Page, screenshots: Path) -> None:
        self.page = page
        self._screenshots = screenshots

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=self._screenshots / f"{name}.png", animations="disabled")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name)

    def sees(self, text: str | re.Pattern[str]) -> None:
        """Wait until a text is to be seen somewhere on the page."""
        expect(self.page.get_by_text(text).first).to_be_visible()

    def open_asset(self, *path: str) -> None:
        """Open the page of an asset from the lineage, by its group and name."""
        self.page.goto(f"/assets/{'/'.join(path)}")
        expect(self.button("Materialize…")).to_be_enabled()

    def choose_partitions(self, text: str, count: int) -> Locator:
        """Open Materialize or Launch backfill's dialog, choose partitions; return the dialog."""
        dialog = self.page.get_by_role("dialog")
        field = dialog.get_by_role("textbox").first
        field.fill(text)
        field.press("Enter")
        expect(dialog.get_by_text(re.compile(rf"\b{count} (partitions?|runs)\b")).first).to_be_visible()
        return dialog

    def materialize(self, partitions: str, count: int, *, shot: str) -> None:
        """Press Materialize on an asset's page, choose partitions, launch."""
        self.button("Materialize…").click()
        dialog = self.choose_partitions(partitions, count)
        self.shoot(shot)
        dialog.get_by_role("button", name=re.compile("^Launch (1 run|backfill)$")).click()
        expect(dialog).to_be_hidden()


class Launchpad:
    """The Launchpad of the job `restore`, reached as a user reaches it."""

    def __init__(self, ui: Ui) -> None:
        self.ui = ui
        self._page = ui.page

    def go(self) -> None:
        """Open it by its address."""
        self._page.goto("/locations/pitr_pipelines/jobs/restore/playground")
        expect(self._page.get_by_role("combobox", name="Partition")).to_be_visible()

    def find(self) -> None:
        """Open it from the list of jobs, by way of the job's own page."""
        # By address: the menu sometimes lacks its entry Jobs until the page is loaded again.
        self._page.goto("/jobs")
        self._page.get_by_role("link", name=re.compile(r"^job restore\b")).click()
        self.ui.sees("in a new cluster beside the original")
        self._page.get_by_role("tab", name="Launchpad").click()
        expect(self._page.get_by_role("combobox", name="Partition")).to_be_visible()

    def choose(self, hour: Hour) -> None:
        """Choose an hour, and wait until the form is filled in."""
        self._page.get_by_role("combobox", name="Partition").click()
        self._page.keyboard.type(str(hour))
        self._page.get_by_role("menuitem", name=str(hour)).click()
        expect(self._page.locator(".CodeMirror-code")).to_contain_text("target_time:")
        expect(self.launch_button).to_be_enabled()

    @property
    def launch_button(self) -> Locator:
        return self.ui.button("Launch Run")

    @property
    def text(self) -> str:
        """What is in the editor."""
        lines = self._page.locator(".CodeMirror-line").all_inner_texts()
        return "\n".join(line.replace("\u200b", "").replace("\xa0", " ") for line in lines)

    def edit(self, values: Mapping[str, str]) -> None:
        """Change some of the settings that are filled in."""
        text = self.text
        for key, value in values.items():
            text, changed = re.subn(rf"(?m)^(\s+{key}:) .*$", rf"\g<1> {value}", text)
            assert changed == 1, f"{key} is not filled in:\n{text}"
        self.write(text)
        for value in values.values():
            expect(self._page.locator(".CodeMirror-code")).to_contain_text(value)

    def write(self, text: str) -> None:
        """Put a text in the place of all that is in the editor."""
        self._page.locator(".CodeMirror-code").click()
        self._page.keyboard.press("Control+a")
        self._page.keyboard.insert_text(text)

    def launch(self, *, although: str | None = None) -> RunPage:
        """Launch; `although` is what Dagster warns of, in a dialog that is then confirmed."""
        expect(self.launch_button).to_be_enabled()
        self.launch_button.click()
        if although is not None:
            expect(self._page.get_by_role("dialog")).to_contain_text(although)
            self.ui.button("Confirm").click()
        self._page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
        return RunPage(self.ui)


class RunPage:
    """The page of a run."""

    def __init__(self, ui: Ui) -> None:
        self.ui = ui
        self._page = ui.page

    def ends(self, how: str) -> None:
        """Wait until the page says `Success` or `Failure`; the other one fails the test at once."""
        tag = self._page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
        expect(tag).to_be_visible()
        expect(tag).to_have_text(how)
        expect(self._page.get_by_text(re.compile("^RUN_(SUCCESS|FAILURE|CANCELED)$")).first).to_be_visible()

    def log(self, last: str, *, shot: str) -> str:
        """Return the whole log, as text; `last` is something near its end."""
        self._page.set_viewport_size({"width": 1440, "height": _TALL})
        expect(self._page.get_by_text("ENGINE_EVENT").first).to_be_visible()
        expect(self._page.get_by_text(last).first).to_be_visible()
        text = self._page.locator("body").inner_text()
        self.ui.shoot(shot)
        self._page.set_viewport_size({"width": 1440, "height": 900})
        return text
