"""Where PostgreSQL's own programs are on this machine, by major version.

A directory counts only if its `postgres` really runs and says the wanted version: a leftover
directory or a missing shared library is found out here, not in the middle of a restore. When root
must run servers as another user who cannot reach the programs, they are copied once to where
everybody can execute them and only root can change them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.errors import BinariesNotFound
from pitr_pipelines.postgres.account import Account, run

SUPPORTED_MAJORS = range(15, 19)

CACHE = Path("/var/cache")
"""Where root's copies go: root alone can create names there, and nothing ages its files."""

_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")
_VERSION_TIMEOUT_S = 15.0
_SYSTEM_DIRECTORIES = (
    "/usr/lib/postgresql/{major}/bin",  # Debian, Ubuntu
    "/usr/pgsql-{major}/bin",  # PGDG's RPMs
    "/usr/libexec/postgresql{major}",  # Alpine
    "/opt/PostgreSQL/{major}/bin",
    "/usr/local/pgsql-{major}/bin",
    "/usr/local/pgsql/bin",  # built from source
    "/opt/homebrew/opt/postgresql@{major}/bin",
    "/usr/local/opt/postgresql@{major}/bin",
    "/Library/PostgreSQL/{major}/bin",
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation: `directory` is its bin, `version` as it says itself, such as 15.19."""

    directory: Path
    major: int
    version: str

    def program(self, name: str) -> Path:
        """Return the path of one program. Raises BinariesNotFound if this installation lacks it."""
        path = self.directory / name
        if not path.is_file():
            raise BinariesNotFound(
                f"{self.directory} has PostgreSQL {self.version} but not the program {name}",
                remedy="Install the complete server and client packages of that version, or name "
                f"another directory in the settings: binaries: {{{self.major}: /path/to/bin}}.",
            )
        return path

    def reachable_by(self, account: Account, *, cache: Path = CACHE) -> Binaries:
        """Return this installation, or a copy of it that `account` can execute.

        A copy is only made by root, of a relocatable installation (bin, lib and share below one
        directory), and is reused as long as the original does not change. Raises BinariesNotFound
        if neither can be executed.
        """
        if not account.switch:
            return self
        problem = _problem_running(self.directory, account)
        if problem is None:
            return self
        copy = Binaries(_copy_for_all(self, cache, problem, account) / "bin", self.major, self.version)
        problem = _problem_running(copy.directory, account)
        if problem is not None:
            raise _unreachable(self, account, f"and the copy {copy.directory} does not run: {problem}")
        return copy


def find_binaries(major: int, configured: Mapping[int, Path]) -> Binaries:
    """Return the programs of one major version.

    The configured directory counts alone if there is one for this major. Else the order is: the
    systems' usual directories, PATH, then the programs that `make` unpacked into this Python
    environment. Raises BinariesNotFound, which names every place and why it was not usable.
    """
    places = _configured(major, configured) or _usual_places(major)
    reasons: list[str] = []
    for place in places:
        found = _examine(place, major)
        if isinstance(found, Binaries):
            return found
        reasons.append(f"  {place}: {found}")
    raise BinariesNotFound(
        f"found no usable programs of PostgreSQL {major}; looked at\n" + "\n".join(reasons),
        remedy=f"Install PostgreSQL {major} (Debian: apt install postgresql-{major}), or name its bin "
        f"directory in the settings: binaries: {{{major}: /path/to/bin}}.",
    )


def find_all_binaries(configured: Mapping[int, Path]) -> dict[int, Binaries]:
    """Return what find_binaries finds for each supported or configured major version."""
    found = {}
    for major in sorted({*SUPPORTED_MAJORS, *configured}):
        for place in _configured(major, configured) or _usual_places(major):
            binaries = _examine(place, major)
            if isinstance(binaries, Binaries):
                found[major] = binaries
                break
    return found


def _configured(major: int, configured: Mapping[int, Path]) -> list[Path]:
    return [configured[major]] if major in configured else []


def _usual_places(major: int) -> list[Path]:
    places = [Path(pattern.format(major=major)) for pattern in _SYSTEM_DIRECTORIES]
    places += _in_path()
    places.append(Path(sys.prefix) / "postgresql" / str(major) / "bin")
    return list(dict.fromkeys(places))


def _in_path() -> Iterator[Path]:
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        # What we may not look into cannot be run from there either.
        if entry and os.access(program := os.path.join(entry, "postgres"), os.X_OK):  # noqa: PTH118
            yield Path(program).resolve().parent


def _examine(directory: Path, major: int) -> Binaries | str:
    """Return the installation in `directory`, or why it cannot serve as `major`."""
    program = directory / "postgres"
    try:
        if not stat.S_ISREG(program.stat().st_mode):
            return "its postgres is not a file"
    except FileNotFoundError:
        return "has no postgres" if directory.is_dir() else "does not exist"
    except OSError as error:
        return error.strerror or str(error)
    output = _version_output(program, None)
    if isinstance(output, _Broken):
        return output.why
    match = _VERSION.search(output)
    if match is None:
        return f"its postgres says {output.strip()!r}, which is no version"
    if int(match[2]) != major:
        return f"is PostgreSQL {match[1]}"
    return Binaries(directory, major, match[1])


@dataclass(frozen=True, slots=True)
class _Broken:
    why: str


def _version_output(program: Path, account: Account | None) -> str | _Broken:
    argv = [str(program), "--version"]
    try:
        if account is None:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
            )
        else:
            done = run(account, argv, timeout_s=_VERSION_TIMEOUT_S)
    except OSError as error:
        return _Broken(f"cannot be executed: {error.strerror}")
    except subprocess.TimeoutExpired:
        return _Broken(f"postgres --version did not answer in {_VERSION_TIMEOUT_S:.0f} s")
    if done.returncode != 0:
        first_line = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0]
        return _Broken(f"postgres --version failed: {first_line or f'exit {done.returncode}'}")
    return done.stdout


def _problem_running(directory: Path, account: Account) -> str | None:
    output = _version_output(directory / "postgres", account)
    return output.why if isinstance(output, _Broken) else None


def _copy_for_all(binaries: Binaries, cache: Path, problem: str, account: Account) -> Path:
    source = binaries.directory.resolve().parent
    if not _is_relocatable(source):
        raise _unreachable(binaries, account, f"({problem}) and its files lie apart, so no copy can be made")
    copy = cache / f"pitr-postgresql-{binaries.version}-{_fingerprint(binaries)}"
    if copy.is_symlink() or copy.exists():
        return _trusted(copy, binaries, account)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=cache))
        for name in ("bin", "lib", "share"):
            shutil.copytree(source / name, temporary / name, symlinks=True)
        _open_to_all(temporary)
        temporary.rename(copy)
    except OSError as error:
        if copy.is_dir():  # another process was first
            return _trusted(copy, binaries, account)
        raise _unreachable(
            binaries, account, f"({problem}) and copying it to {copy} failed: {error}"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return copy


def _is_relocatable(prefix: Path) -> bool:
    """Tell whether PostgreSQL's own lib and share lie beside its bin."""
    catalogs = ("share/postgres.bki", "share/postgresql/postgres.bki")
    return (prefix / "lib").is_dir() and any((prefix / name).is_file() for name in catalogs)


def _fingerprint(binaries: Binaries) -> str:
    status = (binaries.directory / "postgres").stat()
    identity = f"{binaries.directory.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _open_to_all(root: Path) -> None:
    """Let everybody read and execute, and root alone write, whatever modes the original had."""
    for parent, _, files in os.walk(root):
        Path(parent).chmod(0o755)
        os.chown(parent, 0, 0)
        for name in files:
            path = Path(parent, name)
            os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _trusted(copy: Path, binaries: Binaries, account: Account) -> Path:
    """Return `copy` if only root can have written it: servers would run what lies there."""
    status = copy.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise _unreachable(
            binaries, account, f"and {copy} is not a directory that only root can write, so it is not used"
        )
    return copy


def _unreachable(binaries: Binaries, account: Account, why: str) -> BinariesNotFound:
    return BinariesNotFound(
        f"PostgreSQL {binaries.version} in {binaries.directory} cannot be executed by the user "
        f"{account.name}, whom servers run as, {why}",
        remedy="Install PostgreSQL where every user can execute it, or name such a directory in the "
        f"settings: binaries: {{{binaries.major}: /path/to/bin}}.",
    )
