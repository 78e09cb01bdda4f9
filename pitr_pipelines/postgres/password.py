"""The backup role's password: where the settings say that it is, read anew at each connection.

So a secret that was rotated is taken at the next connection, without a restart. No error and no finding
repeats what a variable or a file holds.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pitr_pipelines.errors import SettingsError
from pitr_pipelines.settings import DatabaseSettings


def password_of(name: str, database: DatabaseSettings) -> str | None:
    """Return the password that `password_env` or `password_file` leads to, None if the settings name none.

    Raises SettingsError if the variable is not set, if the file cannot be read or is empty, or if either
    holds what no password file of PostgreSQL can.
    """
    if database.password_file is not None:
        return _from_file(name, database.password_file)
    if database.password_env is not None:
        return _from_variable(name, database.password_env)
    return None


def exposed_password_file(database: DatabaseSettings) -> Path | None:
    """Return the password's file if everybody on this machine can read it.

    That is no error: in a container everybody is us, and secrets are often mounted so.
    """
    file = database.password_file
    if file is None or not file.exists():
        return None
    return file if file.stat().st_mode & stat.S_IROTH else None


def _from_variable(name: str, variable: str) -> str:
    password = os.environ.get(variable)
    if not password:
        raise SettingsError(
            f"databases.{name}.password_env names the environment variable {variable}, which is not set",
            remedy=f"Set {variable} to the role's password where this runs, or take password_env out.",
        )
    if "\n" in password or "\r" in password:
        raise SettingsError(
            f"the environment variable {variable} (databases.{name}.password_env) holds a line break",
            remedy="PostgreSQL's password files cannot carry one; check how the variable is set.",
        )
    return password


def _from_file(name: str, file: Path) -> str:
    where = f"{file}, which databases.{name}.password_file names,"
    try:
        password = file.read_bytes().decode().rstrip("\r\n")
    except OSError as error:
        raise SettingsError(
            f"{where} cannot be read: {error.strerror}",
            remedy=_remedy_of(error, file),
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(
            f"{where} is not UTF-8 text", remedy="Write nothing but the password into it."
        ) from None
    if not password:
        raise SettingsError(
            f"{where} is empty",
            remedy="Write the role's password into it; a line break at its end is ignored.",
        )
    if "\n" in password or "\r" in password:
        raise SettingsError(
            f"{where} holds several lines",
            remedy="Write nothing but the password into it; a line break at its end is ignored.",
        )
    if "\0" in password:
        raise SettingsError(
            f"{where} holds a NUL byte", remedy="No password can; write nothing but the password into it."
        )
    return password


def _remedy_of(error: OSError, file: Path) -> str:
    if isinstance(error, PermissionError):
        return (
            f"This runs as uid {os.geteuid()}, groups {sorted({os.getegid(), *os.getgroups()})}: let it read "
            f"the file. For a secret that compose mounts: chgrp {os.getegid()} and chmod 640 the file on the "
            "host. In Kubernetes: fsGroup in the pod's securityContext, and defaultMode: 0440 for the volume."
        )
    if isinstance(error, FileNotFoundError):
        return (
            f"Is the secret given to this container, and under that name? ls -l '{file.parent}' shows what "
            "is mounted. A relative path is taken from the directory of pitr.yaml."
        )
    return "Name a file that holds the role's password and nothing else."
