"""Mounts for tests, which go away with the process that made them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NoReturn

import pytest

TIMEOUT_S = 60


def cannot_mount(why: str) -> NoReturn:
    """Skip a test that needs a file system of its own, or fail it where PITR_REQUIRE_MOUNT is set."""
    if os.environ.get("PITR_REQUIRE_MOUNT"):
        pytest.fail(f"{why}, and PITR_REQUIRE_MOUNT is set")
    pytest.skip(why)


@pytest.fixture
def mount_namespace() -> Sequence[str]:
    """The start of a command that may mount file systems, which go away when it ends."""
    unshare = shutil.which("unshare")
    if unshare is None:
        cannot_mount("there is no unshare")
    command = [unshare, "--mount"] if os.geteuid() == 0 else [unshare, "--mount", "--map-root-user"]
    probe = subprocess.run(
        [*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, timeout=TIMEOUT_S
    )
    if probe.returncode != 0:
        cannot_mount("mounting is not permitted here")
    return command
