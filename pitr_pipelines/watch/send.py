"""Sending a message through apprise: mail, Slack, Teams, PagerDuty, webhooks, and a hundred others.

Every recipient gets it at the same time, within a bounded time, and one that cannot be reached keeps
it from nobody else. What an error says of an address is blotted out. apprise is imported only when
something is sent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import partial
from urllib.parse import unquote

from pitr_pipelines.errors import PitrError
from pitr_pipelines.watch.in_parallel import Parallel
from pitr_pipelines.watch.message import Message
from pitr_pipelines.watch.recipients import Recipient

TIMEOUT_S = 20.0
"""With the looks before it, less than the minute that Dagster gives a sensor."""
_SHORT = 4
"""Parts of an address that are shorter keep no secret and stand in ordinary words."""

_sending: Parallel[None] = Parallel()


class _Blotting(logging.Filter):
    """Takes the addresses out of what is logged while sending, before any handler sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: frozenset[str] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), self.urls), None
        record.exc_info = record.exc_text = None  # a traceback may quote an address, too
        return True


_blotting = _Blotting()


class NotSent(PitrError):
    """A message did not reach a recipient. It is tried again at the next look."""

    exit_code = 12


def send_all(
    messages: Mapping[Recipient, Message], *, timeout_s: float = TIMEOUT_S
) -> dict[str, PitrError | None]:
    """Send each recipient his message; return by name None, or why he did not get it."""
    work = {
        recipient.name: partial(_send, recipient, message, timeout_s)
        for recipient, message in messages.items()
    }
    return _sending.run(work, timeout_s=timeout_s)


def without_secrets(text: str, urls: Iterable[str]) -> str:
    """Return `text` with every part of the addresses blotted out that may be a secret."""
    parts = {part for url in urls for form in (url, unquote(url)) for part in re.split(r"[/:@?&=,\s]", form)}
    parts.update(urls)
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SHORT:
            text = text.replace(part, "********")
    return text


def _send(recipient: Recipient, message: Message, timeout_s: float) -> None:
    import apprise

    _keep_out_of_logs(recipient.url)
    service = apprise.Apprise(
        asset=apprise.AppriseAsset(app_id="pitr_pipelines", app_desc="PostgreSQL backups")
    )
    if not service.add(recipient.url):
        raise NotSent(
            f"the address in {recipient.name} is not one that apprise knows",
            remedy="Write it as apprise's documentation has it: mailtos://…, slack://…, jsons://….",
        )
    sent = service.notify(
        title=message.title,
        body=message.body,
        notify_type=apprise.NotifyType(message.tone.value),
        body_format=apprise.NotifyFormat.TEXT,
        timeout=timeout_s,
    )
    if not sent:
        said = without_secrets("; ".join(str(entry.message) for entry in sent.logs()), [recipient.url])
        raise NotSent(
            f"{recipient.name} did not take the message" + (f": {said}" if said else ""),
            remedy="It is sent again at the next look. `pitr watch --test` sends a test message.",
        )


def _keep_out_of_logs(url: str) -> None:
    """Let nothing that is logged while sending tell an address: Dagster keeps whatever is logged."""
    _blotting.urls |= {url}
    # urllib3 logs the path of a request when somebody debugs; that is where webhooks carry their tokens.
    for name in ("apprise", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_blotting)
    logging.getLogger("apprise").propagate = False
