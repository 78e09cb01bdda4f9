"""A real Chromium before a real Dagster. What is missing fails the run and says what to install."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import pitr_pipelines
from pitr_pipelines_tests.browser.scene import Scene, scene

try:
    from playwright.sync_api import Browser, sync_playwright

    from pitr_pipelines_tests.browser.pages import TIMEOUT_S, Ui
except ImportError as error:
    raise pytest.UsageError(
        f"the browser test needs Playwright ({error}): `make test-browser` installs it, "
        "or pip install -r requirements/browser.txt"
    ) from None

CHROMIUM_VARIABLE = "PITR_CHROMIUM"
"""Where Chromium is, if not where Debian puts it."""

SCREENSHOTS = Path(pitr_pipelines.__file__).parent.parent / ".screenshots"

_QUIET = (
    *("--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


def pytest_configure() -> None:
    """Clear away also when we are told to end, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the browser is; a user has to install it."""
    named = os.environ.get(CHROMIUM_VARIABLE, "chromium")
    found = shutil.which(named)
    if found is None:
        pytest.fail(
            f"there is no Chromium ({named}): on Debian, apt install chromium; "
            f"elsewhere, name its program in {CHROMIUM_VARIABLE}",
            pytrace=False,
        )
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    arguments = [*_QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        # Playwright gives it a profile directory of its own, new each time.
        started = playwright.chromium.launch(executable_path=chromium, args=arguments, headless=True)
        yield started
        started.close()


@pytest.fixture(scope="session")
def stage(browser: Browser) -> Iterator[Scene]:
    """Two servers with a base backup each, and Dagster: once for all tests. The browser comes first."""
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    SCREENSHOTS.mkdir()
    with scene() as made:
        yield made


@pytest.fixture
def ui(stage: Scene, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Ui]:
    """A user's window, without a past. If the test fails, what it showed last is kept as a screenshot."""
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, locale="en-GB", timezone_id="UTC", base_url=stage.dagster.url
    )
    context.set_default_timeout(TIMEOUT_S * 1000)
    window = Ui(context.new_page(), SCREENSHOTS)
    failed_before = request.session.testsfailed
    yield window
    stage.dagster.check()
    if request.session.testsfailed > failed_before:
        window.shoot("failed-" + re.sub(r"\W+", "-", request.node.name))
    context.close()
