"""Fixtures for the watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pitr_pipelines_tests.watch.webhook import Webhook, running_webhook

VARIABLE = "PITR_ALERT_URL"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """A webhook that PITR_ALERT_URL leads to."""
    with running_webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.url)
        yield hook
