"""Addresses are found where the settings say, and are seen nowhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.alert_settings import AlertSettings
from pitr_pipelines.errors import SettingsError
from pitr_pipelines.watch.message import Message, Tone
from pitr_pipelines.watch.recipients import Recipient, find_recipients
from pitr_pipelines.watch.send import send_all, without_secrets
from pitr_pipelines_tests.defs.storage import make_settings
from pitr_pipelines_tests.watch.webhook import TOKEN, Webhook

MESSAGE = Message("title", "body", Tone.WARNING)


def found(environment: dict[str, str] | None = None, **alerts: Any) -> list[Recipient]:
    return find_recipients(AlertSettings.model_validate(alerts), environment or {})


def test_variables_and_a_file_may_hold_several(tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("# the night shift\n\njson://a/1\n  json://a/2  \n")
    file.chmod(0o640)
    environment = {"ONE": "json://b/1", "TWO": "json://c/1\njson://c/2"}

    recipients = found(environment, to_env=["ONE", "TWO"], to_file=file)

    assert [(one.name, one.url) for one in recipients] == [
        ("ONE", "json://b/1"),
        ("TWO:1", "json://c/1"),
        ("TWO:2", "json://c/2"),
        ("urls:3", "json://a/1"),
        ("urls:4", "json://a/2"),
    ]
    assert "json" not in repr(recipients)


def test_what_cannot_be_found_is_an_error_without_a_secret(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PITR_ALERT_URL, which is not set"):
        found(to_env=["PITR_ALERT_URL"])
    with pytest.raises(SettingsError, match="cannot read"):
        found(to_file=tmp_path / "absent")
    file = tmp_path / "urls"
    file.write_text(f"json://a/{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="can be read by everybody") as raised:
        found(to_file=file)
    assert TOKEN not in str(raised.value)
    file.chmod(0o600)
    file.write_text("# nobody\n")
    with pytest.raises(SettingsError, match="holds no URL"):
        found(to_file=file)


def test_an_address_in_the_settings_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not the name of an environment variable") as raised:
        make_settings(tmp_path, alerts={"to_env": [f"slack://{TOKEN}/x"]})
    assert TOKEN not in str(raised.value)


def test_one_that_cannot_be_reached_keeps_nothing_from_the_others(
    webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    recipients = [
        Recipient("GOOD", webhook.url),
        Recipient("GONE", f"json://127.0.0.1:1/{TOKEN}"),
        Recipient("NONSENSE", f"nonsense {TOKEN}"),
    ]

    caplog.set_level(logging.DEBUG)
    # By itself: other libraries, such as Kubernetes' client, turn it down for the whole process.
    caplog.set_level(logging.DEBUG, logger="urllib3.connectionpool")
    logging.getLogger("apprise").addHandler(caplog.handler)
    try:
        results = send_all(dict.fromkeys(recipients, MESSAGE))
    finally:
        logging.getLogger("apprise").removeHandler(caplog.handler)

    assert "POST /********" in caplog.text
    assert "Unsupported URL" in caplog.text  # so a log that is kept holds no address either
    assert results["GOOD"] is None
    assert "GONE did not take the message" in str(results["GONE"])
    assert "NONSENSE is not one that apprise knows" in str(results["NONSENSE"])
    assert TOKEN not in str(results) + caplog.text
    assert [one["title"] for one in webhook.take()] == ["title"]


@pytest.mark.parametrize(
    "text",
    [
        "could not reach mailtos://me:hunter22@example.com",
        "login of me with hunter22 failed",
        "GET https://example.com/?key=a%2Fbcd1 gave 403 (a/bcd1)",
    ],
)
def test_parts_of_an_address_are_blotted_out_of_what_others_say(text: str) -> None:
    urls = ["mailtos://me:hunter22@example.com", "jsons://example.com/?key=a%2Fbcd1"]
    left = without_secrets(text, urls)
    assert "hunter22" not in left
    assert "bcd1" not in left
