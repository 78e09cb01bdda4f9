"""Key files: making one, and reading those that a restore was given.

A secret key is written once, to a file that must not exist, readable by its owner alone. It is never
printed, and no error contains it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.errors import BadRequest, SettingsError
from pitr_pipelines.offsite.encryption import Identities, generate_identity, parse_identities

KEY_VARIABLE = "PITR_AGE_KEY_FILE"
_KEY_MODE = 0o600


def make_key_file(path: Path, *, now: datetime | None = None) -> str:
    """Write a new secret key to `path`, as age-keygen does, and return the public key.

    Raises BadRequest if something is there already: it may be the only key to older envelopes.
    """
    secret, public = generate_identity()
    made_at = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    text = f"# created: {made_at}\n# public key: {public}\n{secret}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _KEY_MODE)
    except FileExistsError:
        raise BadRequest(
            f"{path} is there already, and was left alone: it may be the only key to older envelopes",
            remedy="Name another file.",
        ) from None
    with open(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, _KEY_MODE)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    durable.fsync_directory(path.absolute().parent)
    return public


def read_key_files(paths: Iterable[Path], environment: Mapping[str, str]) -> Identities | None:
    """Read the secret keys in these files, else in the one that $PITR_AGE_KEY_FILE names; None without.

    Raises SettingsError, naming the file, if one cannot be read or holds no secret key.
    """
    files = list(paths)
    if not files and environment.get(KEY_VARIABLE):
        files = [Path(environment[KEY_VARIABLE])]
    found: list[object] = []
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingsError(
                f"the key file {file} cannot be read: {reason}",
                remedy="Name the file that `pitr offsite keygen` or age-keygen wrote.",
            ) from None
        try:
            found += parse_identities(text).keys
        except SettingsError as error:
            raise SettingsError(f"{file}: {error.what}", remedy=error.remedy) from None
    return Identities(tuple(found)) if found else None
