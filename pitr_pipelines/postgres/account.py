"""Which system user PostgreSQL's server programs run as.

initdb and postgres refuse to run as root. Started by an ordinary user, everything here runs as that
user; started by root, it runs as an account that is chosen once and passed along. Children get a
clean environment: no PG* variable of the caller can turn a program to another server or directory.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.errors import SettingsError

DEFAULT_ACCOUNTS = ("postgres", "nobody")
"""Whom root runs servers as, if the settings do not say: the first that exists."""

_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "ICU_DATA", "TMPDIR")
_FALLBACK_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Account:
    """A system user. `switch` says that we are root and children must change to it."""

    uid: int
    gid: int
    name: str
    switch: bool


def server_account(run_as: str | None) -> Account:
    """Return whom servers run as: ourselves, or, when we are root, `run_as`, postgres or nobody.

    Raises SettingsError if `run_as` names no user, names root, or asks an ordinary user to become
    somebody else.
    """
    uid = os.geteuid()
    if uid != 0:
        name = _name_of(uid)
        if run_as is not None and run_as != name:
            raise SettingsError(
                f"run_as: servers cannot run as {run_as!r}, because this runs as {name!r}, not as root",
                remedy=f"Run this as root or as {run_as!r}, or take run_as out of the settings.",
            )
        return Account(uid, os.getegid(), name, switch=False)
    for name in (run_as,) if run_as is not None else DEFAULT_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise SettingsError(
                f"run_as: {name!r} is root, and PostgreSQL refuses to run as root",
                remedy="Name an unprivileged user in run_as.",
            )
        return Account(entry.pw_uid, entry.pw_gid, name, switch=True)
    missing = run_as or " nor ".join(DEFAULT_ACCOUNTS)
    raise SettingsError(
        f"run_as: this runs as root, PostgreSQL refuses to, and there is no user {missing}",
        remedy="Create a user for PostgreSQL servers and name it in run_as.",
    )


def run(
    account: Account,
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program as `account` and return what it printed; never raises for its exit status.

    It runs in `/`, because the account may not be allowed into our own directory, with a clean
    environment to which `env` is added. Raises OSError if it cannot be started, and
    subprocess.TimeoutExpired after `timeout_s` seconds.
    """
    return subprocess.run(
        [str(part) for part in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd="/",
        timeout=timeout_s,
        env=clean_environment(account, env),
        user=account.uid if account.switch else None,
        group=account.gid if account.switch else None,
        extra_groups=[] if account.switch else None,
    )


def clean_environment(account: Account, added: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a server program: few of our variables, then those `added`.

    Messages are in English, because callers read them.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        "PATH": _FALLBACK_PATH,
        **kept,
        "LC_ALL": "C",
        "HOME": _home_of(account),
        "USER": account.name,
        "LOGNAME": account.name,
        **(added or {}),
    }


def give(path: Path, account: Account) -> None:
    """Make `account` the owner of `path` and of everything in it, if we are root; else do nothing.

    Symbolic links themselves change owner, never what they point to.
    """
    if not account.switch:
        return
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
    if path.is_symlink() or not path.is_dir():
        return
    for parent, directories, files in os.walk(path):
        for name in (*directories, *files):
            os.chown(os.path.join(parent, name), account.uid, account.gid, follow_symlinks=False)  # noqa: PTH118


def make_owned_directory(path: Path, account: Account, *, mode: int = 0o700) -> Path:
    """Create one directory that belongs to `account`. Raises FileExistsError if it is there."""
    path.mkdir(mode=0o700)
    give(path, account)
    path.chmod(mode)
    return path


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # containers often run as a number without a name
        return str(uid)


def _home_of(account: Account) -> str:
    try:
        return pwd.getpwuid(account.uid).pw_dir
    except KeyError:
        return "/"
