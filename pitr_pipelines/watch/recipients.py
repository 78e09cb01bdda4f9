"""Who is told: apprise URLs from environment variables and a file. Their text is secret.

A recipient is known by where his address stands (`PITR_ALERT_URL`, `alert-urls:2`), never by the
address: that appears in no log, no error, no state and no representation of an object.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pitr_pipelines.alert_settings import AlertSettings
from pitr_pipelines.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Recipient:
    """One place to send to."""

    name: str
    url: str = field(repr=False)


def find_recipients(alerts: AlertSettings, environment: Mapping[str, str] | None = None) -> list[Recipient]:
    """Return everybody whom the settings name.

    Raises SettingsError if a variable is not set, or the file cannot be read, is readable for
    everybody, or holds none.
    """
    environment = os.environ if environment is None else environment
    return [*_from_variables(alerts, environment), *_from_file(alerts)]


def _from_variables(alerts: AlertSettings, environment: Mapping[str, str]) -> Iterator[Recipient]:
    for variable in alerts.to_env:
        urls = environment.get(variable, "").split()
        if not urls:
            raise SettingsError(
                f"alerts.to_env names the environment variable {variable}, which is not set",
                remedy=f"Set {variable} to an apprise URL where this runs, or take it out of the settings.",
            )
        for number, url in enumerate(urls, start=1):
            yield Recipient(variable if len(urls) == 1 else f"{variable}:{number}", url)


def _from_file(alerts: AlertSettings) -> Iterator[Recipient]:
    file = alerts.to_file
    if file is None:
        return
    try:
        mode = file.stat().st_mode
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(
            f"cannot read {file}, which alerts.to_file names: {why}",
            remedy="Write one apprise URL on a line, and let the user this runs as read it.",
        ) from None
    if stat.S_IMODE(mode) & stat.S_IROTH:
        raise SettingsError(
            f"{file}, which alerts.to_file names, can be read by everybody",
            remedy=f"It holds secrets: chmod 640 '{file}', with a group that may read it, or 600.",
        )
    found = 0
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            found += 1
            yield Recipient(f"{file.name}:{number}", line.strip())
    if not found:
        raise SettingsError(f"{file} holds no URL", remedy="Write one apprise URL on a line.")
