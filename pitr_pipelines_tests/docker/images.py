"""The images, built from packages, as none can be pulled: ours by our Dockerfile, stand-ins for the others.

A stand-in has what the compose file relies on in the real image: its users, paths, entry point and options.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pitr_pipelines_tests.docker.engine import SYSTEM_PATH, Engine

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).with_name("images")
POSTGRES_MAJOR = 17
MAJORS = ("17", "18")
"""In our image: one of each package that the pins name."""

IMAGES: Mapping[str, str] = {
    "PITR_IMAGE": "pitr-pipelines:test",
    "ORDER_DB_IMAGE": "postgres-stand-in",
    "INVENTORY_DB_IMAGE": "postgres-stand-in",
    "DAGSTER_DB_IMAGE": "postgres-stand-in",
    "DOCKER_PROXY_IMAGE": "docker-proxy-stand-in",
    "STORE_IMAGE": "store-stand-in",
}
_SUITE = "bookworm"
_LIBRARIES = "libgssapi-krb5-2,libicu72,liblz4-1,libossp-uuid16,libxml2,libzstd1"
_BASE_PACKAGES = f"ca-certificates,gosu,{_LIBRARIES},locales,tzdata,wget"
_PYTHON = (3, 11)
"""Debian 12's, which the stand-in for the Python image has."""

_WHEEL_PLATFORMS = (
    "manylinux2014",
    *(f"manylinux_2_{glibc}" for glibc in (36, 35, 34, 31, 28, 24, 17, 12, 5)),
)


def build_images(engine: Engine, work: Path) -> None:
    """Build every image that the stacks need; `work` is for what they are made of."""
    _debian(engine, work / "debian")
    _build(engine, "python-stand-in", _context(work / "python", "python"), "--network=host")
    _ours(engine, work / "ours")
    postgres = _context(work / "postgres", "postgres")
    shutil.copytree(
        Path(sys.prefix) / "postgresql" / str(POSTGRES_MAJOR), postgres / "postgresql", symlinks=True
    )
    _build(engine, "postgres-stand-in", postgres)
    store = _context(work / "store", "store")
    shutil.copy(Path(sys.executable).with_name("weed"), store / "weed")
    _build(engine, "store-stand-in", store)
    _build(engine, "docker-proxy-stand-in", _context(work / "docker-proxy", "docker-proxy"))
    shutil.rmtree(work)


def _debian(engine: Engine, root: Path) -> None:
    # From the mirror that debootstrap itself takes for this suite.
    _run("debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", _SUITE, str(root))
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(root / waste)
        (root / waste).mkdir()
    (root / "var/cache/apt/archives/partial").mkdir()
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    # The locale of the official images.
    aliases = ("-A", "/usr/share/locale/locale.alias")
    _run("chroot", str(root), "localedef", "-i", "en_US", "-c", "-f", "UTF-8", *aliases, "en_US.UTF-8")
    packed = root.with_suffix(".tar")
    _run("tar", "-C", str(root), "-cf", str(packed), ".")
    engine.docker("import", str(packed), "debian-stand-in")
    packed.unlink()
    shutil.rmtree(root)


def _ours(engine: Engine, context: Path) -> None:
    """Build the Dockerfile of this checkout, with wheels, as where no package index can be reached."""
    context.mkdir(parents=True)
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, context / name)
    for name in ("requirements", "pitr_pipelines", "deploy"):
        shutil.copytree(REPOSITORY / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = context / "wheels"
    requirements = REPOSITORY / "requirements"
    _download(wheels, requirements / "containers.txt", "--no-deps", *_for_another_python())
    for major in MAJORS:
        _download(wheels, requirements / f"postgres-{major}.txt", "--no-deps", "--ignore-requires-python")
    _build(
        engine,
        IMAGES["PITR_IMAGE"],
        context,
        "--network=host",
        *("--build-arg", "BASE_IMAGE=python-stand-in"),
        *("--build-arg", f"POSTGRES_MAJORS={' '.join(MAJORS)}"),
        *("--build-arg", "PIP_OPTIONS=--no-index --find-links ."),
    )


def _for_another_python() -> list[str]:
    if sys.version_info[:2] == _PYTHON:
        return []
    version = ".".join(map(str, _PYTHON))
    abis = ("cp311", "abi3", "none")
    words = ["--python-version", version, "--implementation", "cp"]
    words += [word for abi in abis for word in ("--abi", abi)]
    return words + [word for name in _WHEEL_PLATFORMS for word in ("--platform", f"{name}_x86_64")]


def _download(wheels: Path, requirements: Path, *options: str) -> None:
    fixed = ("--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *fixed, *options, "--dest", wheels, "-r", requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _context(context: Path, stand_in: str) -> Path:
    shutil.copytree(STAND_INS / stand_in, context)
    return context


def _build(engine: Engine, tag: str, context: Path, *options: str) -> None:
    engine.docker("build", "--quiet", "--tag", tag, *options, str(context), timeout_s=1800)


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
