"""What wal-archive.sh promises, checked by hand with crafted segments, in every shell it must run in.

No server is needed here. The invariant behind most of these tests: whatever happens, a name in the
archive stands for one whole file of one cluster, and a failure is one line and leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "pitr_pipelines" / "wal" / "wal-archive.sh"
SEGMENT_SIZE_BYTES = 1024 * 1024  # the smallest that PostgreSQL allows
OURS = 7_301_234_567_890_123_456
FOREIGN = 18_446_744_073_709_551_615  # identifiers are unsigned: this one would be -1
SEGMENT = "0000000100000000000000A3"
WRITTEN_AT_NS = 1_769_695_200_123_456_789
TIMEOUT_S = 60


def segment(
    system_identifier: int = OURS,
    *,
    fill: bytes = b"x",
    info: int = 0x0002,
    size_bytes: int = SEGMENT_SIZE_BYTES,
) -> bytes:
    """Craft a segment: a valid long page header in this machine's byte order, then filling."""
    header = struct.pack("=HHIQI4xQII", 0xD118, info, 1, 0xA3 << 24, 0, system_identifier, size_bytes, 8192)
    return header + fill * (size_bytes - len(header))


@dataclass(frozen=True)
class Shell:
    """One shell with its tools, and the ways to start wal-archive.sh in it."""

    argv: tuple[str, ...]
    path: str

    def command(self, *arguments: str | Path) -> list[str]:
        return [*self.argv, str(SCRIPT), *map(str, arguments)]

    def environment(self, tools: Path | None = None) -> dict[str, str]:
        """The environment of a call; what lies in `tools` goes before the shell's own tools."""
        return {"PATH": self.path if tools is None else f"{tools}:{self.path}", "LANG": "C.UTF-8"}

    def tool(self, name: str) -> str:
        found = shutil.which(name, path=self.path)
        assert found is not None, f"{name} is missing"
        return found

    def run(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        tools: Path | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        # Like PostgreSQL's, our children inherit that SIGXFSZ is ignored: restore_signals=False.
        return subprocess.run(
            self.command(*arguments),
            cwd=cwd,
            env=self.environment(tools),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            preexec_fn=preexec,
            restore_signals=False,
        )

    def start(
        self, *arguments: str | Path, tools: Path | None = None, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[str]:
        """Start a call in a process group of its own, so that it can be killed with its tools."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(tools),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=pass_fds,
        )


@pytest.fixture(params=["sh", "busybox sh"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    if request.param == "sh":
        return Shell(("sh",), os.environ.get("PATH", os.defpath))
    busybox = shutil.which("busybox")
    if busybox is None:
        if os.environ.get("PITR_REQUIRE_BUSYBOX") == "1":
            pytest.fail("busybox is not installed, and PITR_REQUIRE_BUSYBOX=1 asks for it")
        pytest.skip("busybox is not installed")
    applets = tmp_path_factory.mktemp("busybox")
    for name in subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if "/" not in name:
            (applets / name).symlink_to(busybox)
    return Shell((str(applets / "sh"),), str(applets))


@dataclass(frozen=True)
class Site:
    """A data directory with WAL to archive, and the archive."""

    data: Path
    archive: Path

    def write(self, name: str, content: bytes, directory: str = "pg_wal") -> Path:
        source = self.data / directory / name
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(content)
        os.utime(source, ns=(WRITTEN_AT_NS, WRITTEN_AT_NS))
        return source

    def archived(self) -> dict[str, bytes]:
        """Everything in the archive, hidden files too, except the identity."""
        return {
            entry.name: entry.read_bytes()
            for entry in self.archive.iterdir()
            if entry.name != "system_identifier"
        }

    def identity(self) -> str:
        return (self.archive / "system_identifier").read_text()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    data, archive = tmp_path / "data directory", tmp_path / "backup $HOME [x]" / "order-db"
    for directory in (data / "pg_wal", data / "global", archive):
        directory.mkdir(parents=True)
    (archive / "system_identifier").write_text(f"{OURS}\n")
    return Site(data, archive)


def assert_archived(result: subprocess.CompletedProcess[str]) -> None:
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


def assert_refused(result: subprocess.CompletedProcess[str], *words: str | Path) -> None:
    """One clear line on stderr, and a status that PostgreSQL takes for an ordinary failure."""
    assert 1 <= result.returncode <= 125
    assert result.stdout == ""
    assert result.stderr.startswith("wal-archive.sh: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    for word in words:
        assert str(word) in result.stderr


def fake_tools(directory: Path, scripts: Mapping[str, str]) -> Path:
    directory.mkdir()
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return directory


@pytest.mark.parametrize("size_bytes", [SEGMENT_SIZE_BYTES, 16 * SEGMENT_SIZE_BYTES])
def test_a_segment_is_archived_as_postgresql_asks_for_it(shell: Shell, site: Site, size_bytes: int) -> None:
    content = segment(size_bytes=size_bytes)
    site.write(SEGMENT, content)
    assert_archived(shell.run(site.archive, f"pg_wal/{SEGMENT}", SEGMENT, cwd=site.data))
    assert site.archived() == {SEGMENT: content}


def test_the_time_of_the_last_write_is_kept(shell: Shell, site: Site) -> None:
    shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT)
    difference_ns = abs((site.archive / SEGMENT).stat().st_mtime_ns - WRITTEN_AT_NS)
    assert difference_ns == 0 if shell.argv == ("sh",) else difference_ns < 1000  # old busybox: microseconds


def test_archived_files_are_closed_to_others(shell: Shell, site: Site) -> None:
    shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT)
    assert (site.archive / SEGMENT).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "name",
    ["00000002.history", f"{SEGMENT}.00000028.backup", f"{SEGMENT}.partial"],
    ids=["history", "backup", "partial"],
)
def test_history_backup_and_partial_files_are_archived_too(shell: Shell, site: Site, name: str) -> None:
    content = segment() if name.endswith(".partial") else b"1\t0/A3000028\tno recovery target specified\n"
    source = site.write(name, content)
    assert_archived(shell.run(site.archive, source, name))
    assert site.archived() == {name: content}
    assert abs((site.archive / name).stat().st_mtime_ns - WRITTEN_AT_NS) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        f"../{SEGMENT}",
        f"x/{SEGMENT}",
        f"/{SEGMENT}",
        f".{SEGMENT}",
        f"-{SEGMENT}",
        SEGMENT.lower(),
        SEGMENT[:-1],
        f"{SEGMENT}0",
        f"{SEGMENT}\n",
        f"{SEGMENT}.gz",
        f"{SEGMENT}.partial.partial",
        f"{SEGMENT}.28.backup",
        "2.history",
        "*.history",
        "system_identifier",
        "[0-9A-F]" * 24,
    ],
)
def test_other_names_are_refused(shell: Shell, site: Site, name: str) -> None:
    source = site.write("source", segment())
    result = shell.run(site.archive, source, name)
    assert 1 <= result.returncode <= 125
    assert "not the name of a WAL" in result.stderr
    assert site.archived() == {}
    assert sorted(path.name for path in site.archive.parent.iterdir()) == ["order-db"]


def test_a_wrong_call_says_how_to_call_it(shell: Shell, site: Site) -> None:
    result = shell.run(site.archive, SEGMENT)
    assert result.returncode == 2
    assert result.stderr == 'usage: wal-archive.sh ARCHIVE_DIR "%p" "%f"\n'


def test_a_missing_source_is_a_failure(shell: Shell, site: Site) -> None:
    assert_refused(
        shell.run(site.archive, f"pg_wal/{SEGMENT}", SEGMENT, cwd=site.data), f"no file pg_wal/{SEGMENT}"
    )


def test_a_directory_that_is_not_there_is_not_made(shell: Shell, site: Site) -> None:
    missing = site.archive.parent / "not mounted"
    assert_refused(shell.run(missing, site.write(SEGMENT, segment()), SEGMENT), missing, "mount")
    assert not missing.exists()


@pytest.mark.parametrize("archive", ["", "pg_wal", "."])
def test_an_archive_inside_the_data_directory_by_accident_is_refused(
    shell: Shell, site: Site, archive: str
) -> None:
    site.write(SEGMENT, segment())
    assert_refused(shell.run(archive, f"pg_wal/{SEGMENT}", SEGMENT, cwd=site.data), "full path")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "long page header"),
        (segment()[:32], "long page header"),
        (segment()[:33], "it is damaged"),
        (segment()[:39], f"{SEGMENT_SIZE_BYTES} bytes"),
        (segment(info=0x0001), "long page header"),
        (bytes(SEGMENT_SIZE_BYTES), "long page header"),
        (segment()[:-1], f"{SEGMENT_SIZE_BYTES} bytes"),
        (segment()[: SEGMENT_SIZE_BYTES // 2], f"{SEGMENT_SIZE_BYTES} bytes"),
        (segment() + b"x", f"{SEGMENT_SIZE_BYTES} bytes"),
        (segment() * 11, f"{SEGMENT_SIZE_BYTES} bytes"),
    ],
    ids=[
        "empty",
        "32",
        "33",
        "39",
        "short header",
        "zeros",
        "a byte less",
        "half",
        "a byte more",
        "eleven times",
    ],
)
@pytest.mark.parametrize("name", [SEGMENT, f"{SEGMENT}.partial"])
def test_what_is_no_whole_segment_is_refused(
    shell: Shell, site: Site, name: str, content: bytes, reason: str
) -> None:
    assert_refused(shell.run(site.archive, site.write(name, content), name), name, reason, "pg_waldump")
    assert site.archived() == {}


def test_an_identical_file_is_a_success(shell: Shell, site: Site) -> None:
    source = site.write(SEGMENT, segment())
    assert_archived(shell.run(site.archive, source, SEGMENT))
    before = (site.archive / SEGMENT).stat()
    assert_archived(shell.run(site.archive, source, SEGMENT))
    after = (site.archive / SEGMENT).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert site.archived() == {SEGMENT: segment()}


@pytest.mark.parametrize("there", [segment(fill=b"y"), segment()[:-1], segment() + b"x", b""])
def test_a_different_file_is_refused_and_left_alone(shell: Shell, site: Site, there: bytes) -> None:
    final = site.archive / SEGMENT
    final.write_bytes(there)
    before = final.stat()
    result = shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT)
    assert_refused(result, final, "other content", "find out which server")
    after = final.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert site.archived() == {SEGMENT: there}


def test_a_link_to_nowhere_is_not_written_through(shell: Shell, site: Site) -> None:
    (site.archive / SEGMENT).symlink_to(site.archive / "elsewhere")
    assert_refused(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT), SEGMENT)
    assert [entry.name for entry in site.archive.iterdir() if entry.name != "system_identifier"] == [SEGMENT]


def test_two_histories_of_one_timeline_are_not_mixed_up(shell: Shell, site: Site) -> None:
    assert_archived(
        shell.run(site.archive, site.write("00000002.history", b"1\t0/A3000028\tours\n"), "00000002.history")
    )
    stray = site.write("00000002.history", b"1\t0/A4000028\tstray\n", directory="elsewhere")
    assert_refused(shell.run(site.archive, stray, "00000002.history"), "other content")
    assert site.archived() == {"00000002.history": b"1\t0/A3000028\tours\n"}


@pytest.mark.parametrize("name", [SEGMENT, f"{SEGMENT}.partial"])
def test_another_clusters_wal_is_refused(shell: Shell, site: Site, name: str) -> None:
    result = shell.run(site.archive, site.write(name, segment(FOREIGN)), name)
    assert_refused(result, str(FOREIGN), str(OURS), site.archive, "directory of its own")
    assert site.archived() == {}
    assert site.identity() == f"{OURS}\n"


@pytest.mark.parametrize("name", ["00000002.history", f"{SEGMENT}.00000028.backup"])
def test_another_clusters_other_files_are_refused_where_its_control_file_tells(
    shell: Shell, site: Site, name: str
) -> None:
    site.write(name, b"1\t0/A3000028\tno recovery target specified\n")
    control_file = site.data / "global" / "pg_control"
    control_file.write_bytes(struct.pack("=Q", FOREIGN) + bytes(8184))
    assert_refused(shell.run(site.archive, f"pg_wal/{name}", name, cwd=site.data), str(FOREIGN), str(OURS))
    assert site.archived() == {}
    control_file.write_bytes(struct.pack("=Q", OURS) + bytes(8184))
    assert_archived(shell.run(site.archive, f"pg_wal/{name}", name, cwd=site.data))
    assert set(site.archived()) == {name}


def test_the_first_segment_gives_the_archive_its_identity(shell: Shell, site: Site) -> None:
    (site.archive / "system_identifier").unlink()
    first = shell.run(site.archive, site.write(SEGMENT, segment(FOREIGN)), SEGMENT)
    assert first.returncode == 0
    assert first.stderr.count("\n") == 1
    assert (
        f"{site.archive} is now the archive of the cluster with system identifier {FOREIGN}" in first.stderr
    )
    assert site.identity() == f"{FOREIGN}\n"
    other = SEGMENT[:-1] + "4"
    assert_refused(shell.run(site.archive, site.write(other, segment(OURS)), other), str(OURS), str(FOREIGN))
    assert site.archived() == {SEGMENT: segment(FOREIGN)}


def test_a_lost_identity_is_told_from_the_wal_that_is_there(shell: Shell, site: Site) -> None:
    assert_archived(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT))
    (site.archive / "system_identifier").unlink()
    other = SEGMENT[:-1] + "4"
    foreign = site.write(other, segment(FOREIGN), directory="elsewhere")
    assert_refused(shell.run(site.archive, foreign, other), site.archive / "system_identifier", str(FOREIGN))
    assert not (site.archive / "system_identifier").exists()
    assert shell.run(site.archive, site.write(other, segment()), other).returncode == 0
    assert site.identity() == f"{OURS}\n"
    assert site.archived() == {SEGMENT: segment(), other: segment()}


@pytest.mark.parametrize("text", ["", "\n", f"{OURS}0\n", "unknown\n"])
def test_an_identity_that_does_not_match_is_never_replaced(shell: Shell, site: Site, text: str) -> None:
    (site.archive / "system_identifier").write_text(text)
    result = shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT)
    assert_refused(result, site.archive / "system_identifier", str(OURS))
    assert site.archived() == {}
    assert site.identity() == text


def test_an_identity_without_a_newline_is_understood(shell: Shell, site: Site) -> None:
    (site.archive / "system_identifier").write_text(str(OURS))
    assert_archived(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT))


def logging_tools(shell: Shell, directory: Path) -> tuple[Path, Path]:
    """Tools that do what they always do, but first write down how they were called."""
    log = directory.parent / "log"
    names = ("dd", "touch", "ln", "sync", "cmp")
    scripts = {name: f'echo "{name} $*" >>"{log}"\nexec "{shell.tool(name)}" "$@"' for name in names}
    return fake_tools(directory, scripts), log


def test_content_is_synced_before_it_has_a_name_and_the_name_before_success(
    shell: Shell, site: Site, tmp_path: Path
) -> None:
    tools, log = logging_tools(shell, tmp_path / "tools")
    assert_archived(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools))
    calls = log.read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["dd", "touch", "ln", "sync"]
    assert "conv=fsync" in calls[0]
    assert calls[3] == f"sync {site.archive / SEGMENT} {site.archive}"


def test_a_file_that_was_already_there_is_synced_too(shell: Shell, site: Site, tmp_path: Path) -> None:
    tools, log = logging_tools(shell, tmp_path / "tools")
    (site.archive / SEGMENT).write_bytes(segment())
    assert_archived(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools))
    assert log.read_text().splitlines()[-1] == f"sync {site.archive / SEGMENT} {site.archive}"


@pytest.mark.parametrize("tool", ["dd", "touch", "ln", "sync", "od"])
@pytest.mark.parametrize("status", [1, 127, 137])
def test_a_tool_that_fails_is_never_a_success(
    shell: Shell, site: Site, tmp_path: Path, tool: str, status: int
) -> None:
    script = f'echo "{tool}: broken disk" >&2\necho "{tool}: more words" >&2\nexit {status}'
    tools = fake_tools(tmp_path / "tools", {tool: script})
    result = shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools)
    assert_refused(result, "long page header" if tool == "od" else f"{tool}: broken disk")
    assert set(site.archived()) == ({SEGMENT} if tool == "sync" else set())


def test_a_copy_that_fails_in_silence_tells_its_status(shell: Shell, site: Site, tmp_path: Path) -> None:
    tools = fake_tools(tmp_path / "tools", {"dd": "exit 3"})
    result = shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools)
    assert_refused(result, "ended with status 3")


def test_the_reason_stays_readable_whatever_runs_beside_the_copy(
    shell: Shell, site: Site, tmp_path: Path
) -> None:
    script = 'printf "dd: no " >&2; sleep 0.3; echo "space left" >&2; exit 1'
    tools = fake_tools(tmp_path / "tools", {"dd": script})
    result = shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools)
    assert_refused(result, "dd: no space left; make room")


def test_the_header_may_be_read_after_the_copy(shell: Shell, site: Site, tmp_path: Path) -> None:
    tools = fake_tools(tmp_path / "tools", {"od": f'sleep 0.3\nexec "{shell.tool("od")}" "$@"'})
    assert_archived(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools))
    other = SEGMENT[:-1] + "4"
    result = shell.run(site.archive, site.write(other, segment(FOREIGN)), other, tools=tools)
    assert_refused(result, str(FOREIGN))
    assert site.archived() == {SEGMENT: segment()}


def obey_permission_bits() -> None:
    """Take from root, for good, what lets it write where the permission bits forbid it."""
    if os.geteuid() == 0:
        drop_capability, dac_override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        if ctypes.CDLL(None).prctl(drop_capability, dac_override, 0, 0, 0) != 0:
            raise OSError("cannot give up CAP_DAC_OVERRIDE")


@pytest.mark.parametrize("identity", ["known", "unknown"])
def test_a_target_without_write_permission_is_one_clear_line(shell: Shell, site: Site, identity: str) -> None:
    if identity == "unknown":
        (site.archive / "system_identifier").unlink()
    source = site.write(SEGMENT, segment())
    site.archive.chmod(0o555)
    try:
        result = shell.run(site.archive, source, SEGMENT, preexec=obey_permission_bits)
    finally:
        site.archive.chmod(0o755)
    assert_refused(result, site.archive, "ermission denied", "try again")
    status = site.archive.stat()
    assert f"uid {os.geteuid()}, groups {os.getegid()}" in result.stderr
    assert f"{site.archive} is dr-xr-xr-x of uid {status.st_uid}, gid {status.st_gid})" in result.stderr
    assert site.archived() == {}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o750, 0o2770])
def test_whatever_the_servers_umask_files_are_for_owner_and_group_alone(
    shell: Shell, site: Site, umask: int, mode: int
) -> None:
    (site.archive / "system_identifier").unlink()
    site.archive.chmod(mode)
    source = site.write(SEGMENT, segment())

    def set_umask() -> None:
        os.umask(umask)

    result = shell.run(site.archive, source, SEGMENT, preexec=set_umask)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    for name in (SEGMENT, "system_identifier"):
        status = (site.archive / name).stat()
        assert status.st_mode & 0o7777 == 0o640, name
        assert status.st_gid == site.archive.stat().st_gid


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT_SIZE_BYTES // 2, SEGMENT_SIZE_BYTES // 2))


def test_a_copy_that_is_cut_short_leaves_nothing(shell: Shell, site: Site) -> None:
    source = site.write(SEGMENT, segment())
    assert_refused(
        shell.run(site.archive, source, SEGMENT, preexec=small_files_only), "File too large", "make room"
    )
    assert site.archived() == {}
    assert_archived(shell.run(site.archive, source, SEGMENT))
    assert site.archived() == {SEGMENT: segment()}


@pytest.mark.parametrize(
    ("options", "then", "reason"),
    [
        ("size=512k", ":", "No space left on device"),
        ("size=4m,nr_inodes=2", ":", "No space left on device"),
        ("size=4m", 'mount -o remount,bind,ro "$archive"', "Read-only file system"),
    ],
    ids=["full", "no inode left", "read-only"],
)
def test_a_full_or_read_only_file_system_is_one_clear_line(
    shell: Shell, site: Site, mount_namespace: Sequence[str], options: str, then: str, reason: str
) -> None:
    source = site.write(SEGMENT, segment())
    script = f"""
        archive=$1 path=$2
        shift 2
        mount -t tmpfs -o {options} none "$archive" || exit 99
        echo {OURS} >"$archive/system_identifier" || exit 99
        {then} || exit 99
        PATH=$path "$@"
        status=$?
        ls -A "$archive"
        exit $status
    """
    result = subprocess.run(
        [
            *mount_namespace,
            "sh",
            "-c",
            script,
            "sh",
            site.archive,
            shell.path,
            *shell.command(site.archive, source, SEGMENT),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.stdout == "system_identifier\n"
    result.stdout = ""
    assert_refused(result, reason, site.archive, "try again")


@pytest.mark.parametrize("identity", ["known", "unknown"])
def test_a_file_system_without_hard_links_is_named_as_the_reason(
    shell: Shell, site: Site, tmp_path: Path, identity: str
) -> None:
    if identity == "unknown":
        (site.archive / "system_identifier").unlink()
    tools = fake_tools(tmp_path / "tools", {"ln": 'echo "ln: $2: Operation not permitted" >&2; exit 1'})
    result = shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT, tools=tools)
    assert_refused(result, "Operation not permitted", "hard links")
    assert site.archived() == {}


def assert_recovers(shell: Shell, site: Site, source: Path) -> None:
    """Check what a killed call left: nothing under the name, or all; and that the next call cleans up."""
    left = site.archived()
    assert left.pop(SEGMENT, segment()) == segment()
    assert all(name.startswith(f".wal-archive.{SEGMENT}.") and name.endswith(".tmp") for name in left)
    assert_archived(shell.run(site.archive, source, SEGMENT))
    assert site.archived() == {SEGMENT: segment()}
    assert abs((site.archive / SEGMENT).stat().st_mtime_ns - WRITTEN_AT_NS) < 1000


def archive_until_killed(
    shell: Shell, site: Site, source: Path, moment: Callable[[], bool], tools: Path | None = None
) -> None:
    """Start to archive, and at that moment kill the call with all its tools."""
    alive, inherited = os.pipe()
    process = shell.start(site.archive, source, SEGMENT, tools=tools, pass_fds=(inherited,))
    os.close(inherited)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not moment():
            assert time.monotonic() < deadline, "the call never reached the moment to be killed at"
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    os.read(alive, 1)  # ends when no tool is left, not even one that the disk keeps waiting
    os.close(alive)


def after(delay_ms: int) -> Callable[[], bool]:
    moment_s = time.monotonic() + delay_ms / 1000
    return lambda: time.monotonic() >= moment_s


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["dd", "touch", "ln", "sync", "rm"])
def test_killed_around_any_step_it_recovers(
    shell: Shell, site: Site, tmp_path: Path, tool: str, moment: str
) -> None:
    reached = tmp_path / "reached"
    stop = f': >"{reached}"\nexec "{shell.tool("sleep")}" 600'
    work = f'"{shell.tool(tool)}" "$@"\n' if moment == "after" else ""
    tools = fake_tools(tmp_path / "tools", {tool: work + stop})
    source = site.write(SEGMENT, segment())
    archive_until_killed(shell, site, source, reached.exists, tools)
    assert_recovers(shell, site, source)


def test_killed_in_the_middle_of_the_copy_it_recovers(shell: Shell, site: Site, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    stop = f': >"{reached}"\nexec "{shell.tool("sleep")}" 600'
    tools = fake_tools(tmp_path / "tools", {"dd": f'"{shell.tool("dd")}" "$@" count=2\n{stop}'})
    source = site.write(SEGMENT, segment())
    archive_until_killed(shell, site, source, reached.exists, tools)
    (half,) = site.archived().values()
    assert 0 < len(half) < SEGMENT_SIZE_BYTES
    assert_recovers(shell, site, source)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["ln", "sync", "rm"])
def test_killed_while_it_gives_the_archive_its_identity_it_recovers(
    shell: Shell, site: Site, tmp_path: Path, tool: str, moment: str
) -> None:
    (site.archive / "system_identifier").unlink()
    reached = tmp_path / "reached"
    stop = f': >"{reached}"\nexec "{shell.tool("sleep")}" 600'
    work = f'"{shell.tool(tool)}" "$@"\n' if moment == "after" else ""
    tools = fake_tools(tmp_path / "tools", {tool: work + stop})
    source = site.write(SEGMENT, segment())
    archive_until_killed(shell, site, source, reached.exists, tools)
    assert SEGMENT not in site.archived()
    assert shell.run(site.archive, source, SEGMENT).returncode == 0
    assert site.identity() == f"{OURS}\n"
    assert site.archived() == {SEGMENT: segment()}


def test_killed_at_any_moment_it_recovers(shell: Shell, site: Site) -> None:
    source = site.write(SEGMENT, segment())
    for delay_ms in range(0, 30, 2):
        archive_until_killed(shell, site, source, after(delay_ms))
        assert_recovers(shell, site, source)
        (site.archive / SEGMENT).unlink()


def test_what_earlier_tries_left_goes_when_it_is_old_or_for_the_same_file(shell: Shell, site: Site) -> None:
    other = SEGMENT[:-1] + "4"
    an_hour_ago_s = time.time() - 3700
    names = {
        "same file": f".wal-archive.{SEGMENT}.1.tmp",
        "same file, second try": f".wal-archive.{SEGMENT}.1-1.tmp",
        "other file, old": f".wal-archive.{other}.1.tmp",
        "other file, perhaps alive": f".wal-archive.{other}.2.tmp",
        "of somebody else": f".{SEGMENT}.tmp",
    }
    for description, name in names.items():
        (site.archive / name).write_bytes(b"left")
        if "old" in description or "somebody" in description:
            os.utime(site.archive / name, (an_hour_ago_s, an_hour_ago_s))
    assert_archived(shell.run(site.archive, site.write(SEGMENT, segment()), SEGMENT))
    assert set(site.archived()) == {SEGMENT, names["other file, perhaps alive"], names["of somebody else"]}


def test_callers_for_the_same_file_all_succeed_with_one_file(shell: Shell, site: Site) -> None:
    source = site.write(SEGMENT, segment())
    for _ in range(5):
        processes = [shell.start(site.archive, source, SEGMENT) for _ in range(6)]
        results = [(process.communicate(timeout=TIMEOUT_S)[1], process.returncode) for process in processes]
        assert results == [("", 0)] * 6
        assert site.archived() == {SEGMENT: segment()}
        (site.archive / SEGMENT).unlink()


def test_of_callers_with_different_content_for_one_name_one_wins(shell: Shell, site: Site) -> None:
    sources = [site.write(SEGMENT, segment(fill=b"%d" % n), directory=f"server-{n}") for n in range(5)]
    for _ in range(5):
        processes = [shell.start(site.archive, source, SEGMENT) for source in sources]
        statuses = [process.wait(timeout=TIMEOUT_S) for process in processes]
        complaints = [process.communicate()[1] for process in processes]
        assert sorted(statuses) == [0, 1, 1, 1, 1]
        winner = statuses.index(0)
        assert site.archived() == {SEGMENT: segment(fill=b"%d" % winner)}
        assert all("other content" in complaints[n] for n in range(5) if n != winner)
        (site.archive / SEGMENT).unlink()


def test_of_two_clusters_that_start_an_archive_at_once_one_gets_it(shell: Shell, site: Site) -> None:
    names = {OURS: SEGMENT, FOREIGN: SEGMENT[:-1] + "4"}
    sources = {cluster: site.write(name, segment(cluster)) for cluster, name in names.items()}
    for _ in range(5):
        (site.archive / "system_identifier").unlink()
        processes = {
            cluster: shell.start(site.archive, source, names[cluster]) for cluster, source in sources.items()
        }
        statuses = {cluster: process.wait(timeout=TIMEOUT_S) for cluster, process in processes.items()}
        for process in processes.values():
            process.communicate()
        (winner,) = [cluster for cluster, status in statuses.items() if status == 0]
        assert site.identity() == f"{winner}\n"
        assert site.archived() == {names[winner]: segment(winner)}
        (site.archive / names[winner]).unlink()
