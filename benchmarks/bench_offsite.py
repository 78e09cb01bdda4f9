"""How the day's envelope goes off-site: how much memory it takes, and how fast, against plain boto3.

A real S3 server (SeaweedFS) on loopback takes an envelope of random bytes, made while it is sent: with one
request (unit `request`) and in parts (unit `upload`), each unencrypted and encrypted, and, for comparison,
the same unencrypted envelope from boto3's `upload_fileobj`. Each goes in a process of its own, whose peak
memory is measured. Throughput is told as a ratio to boto3's in the same run, on the clock, which the server
shares, and by the client's own processor time.

Promised, and with --check the exit status is 1 if one is broken: less than 200 MiB of memory; no copy on
disk, so next to nothing written, and no file open for writing at any look; and the number of requests.

    python benchmarks/bench_offsite.py [--size-mib 2048] [--rounds 1] [--directory DIR] [--check]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines.offsite_settings import Place

# The S3 server is that of the tests, which are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PROMISED_MIB = 200
MAY_BE_WRITTEN_BYTES = 1024 * 1024
FILE_BYTES = 256 * 1024**2
MIB = 1024**2
DAY = date(2026, 1, 29)
AT = datetime(2026, 1, 29, 4, tzinfo=UTC)
BASELINE = "boto3 upload_fileobj"
WAYS = ("one request", "one request, encrypted", "in parts", "in parts, encrypted", BASELINE)


@dataclass(frozen=True)
class Measured:
    """One upload: how large, how long on the clock and on processors, how much memory, what was written."""

    size_bytes: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    written_bytes: int
    requests: dict[str, int] = field(default_factory=dict)
    files_written: tuple[str, ...] = ()

    @property
    def mb_per_s(self) -> float:
        return self.size_bytes / 1e6 / self.wall_s

    @property
    def mb_per_cpu_s(self) -> float:
        return self.size_bytes / 1e6 / self.cpu_s


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.child:
        _upload(json.loads(arguments.child))
        return 0
    from pitr_pipelines_tests.offsite.s3_server import start_s3_server

    with tempfile.TemporaryDirectory(prefix="bench-offsite-", dir=arguments.directory) as scratch:
        root = Path(scratch)
        artifacts = _make_artifacts(root / "backup", arguments.size_mib * MIB)
        runs: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for number in range(arguments.rounds):
            for way in WAYS:
                # A server for each: what one wrote back to disk would slow the next.
                server = start_s3_server()
                try:
                    runs[way].append(_in_a_process(way, f"{number}.tar", root, artifacts, server.url))
                finally:
                    server.stop()
    return 1 if _report(runs, arguments.size_mib) and arguments.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how the envelope goes off-site.")
    parser.add_argument("--size-mib", type=int, default=2048, help="MiB of artifacts (default 2048)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is done (default 1)")
    parser.add_argument("--directory", type=Path, help="where to put the artifacts (default: TMPDIR)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a promise is broken")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _report(runs: dict[str, list[Measured]], size_mib: int) -> bool:
    """Print what was measured, and tell whether a promise is broken."""
    best = {way: max(found, key=lambda run: run.mb_per_s) for way, found in runs.items()}
    print(f"{size_mib} MiB of artifacts to a server beside it, on {os.cpu_count()} cores:")
    broken = False
    boto3 = best[BASELINE]
    for way, run in best.items():
        peak_mib = max(one.peak_bytes for one in runs[way]) / MIB
        requests = ", ".join(f"{count} {kind}" for kind, count in run.requests.items())
        print(
            f"  {way:24} {run.mb_per_s:4.0f} MB/s ({run.mb_per_s / boto3.mb_per_s:.2f} of boto3), "
            f"{run.mb_per_cpu_s:4.0f} MB per second of processor "
            f"({run.mb_per_cpu_s / boto3.mb_per_cpu_s:.2f}), {peak_mib:3.0f} MiB, "
            f"{run.written_bytes} bytes written to disk" + (f"; {requests}" if requests else "")
        )
        if way != BASELINE:
            broken |= any(_is_broken(way, one) for one in runs[way])
    print(f"promised: less than {PROMISED_MIB} MiB, no copy: {'BROKEN' if broken else 'kept'}")
    return broken


def _is_broken(way: str, run: Measured) -> bool:
    from pitr_pipelines.offsite.parts import part_size

    wanted = {"PutObject": 1}
    if way.startswith("in parts"):
        count = -(-run.size_bytes // part_size(run.size_bytes))
        wanted = {"CreateMultipartUpload": 1, "UploadPart": count, "CompleteMultipartUpload": 1}
    problems = [
        f"{run.peak_bytes / MIB:.0f} MiB of memory" if run.peak_bytes >= PROMISED_MIB * MIB else "",
        f"{run.written_bytes} bytes on disk" if run.written_bytes > MAY_BE_WRITTEN_BYTES else "",
        f"files open for writing: {', '.join(run.files_written)}" if run.files_written else "",
        f"the requests {run.requests}, and not {wanted}" if run.requests != wanted else "",
    ]
    for problem in filter(None, problems):
        print(f"  BROKEN by {way}: {problem}")
    return any(problems)


def _make_artifacts(root: Path, size_bytes: int) -> list[dict[str, object]]:
    """Write files of random bytes, as a base backup's, and return what an artifact says of each."""
    unit = f"base/bench/{DAY}"
    (root / unit).mkdir(parents=True)
    made: list[dict[str, object]] = []
    for number, offset in enumerate(range(0, size_bytes, FILE_BYTES)):
        left = length = min(FILE_BYTES, size_bytes - offset)
        path = f"{unit}/{number}.tar"
        digest = hashlib.sha256()
        with (root / path).open("wb") as file:
            while left:
                piece = os.urandom(min(MIB, left))
                digest.update(piece)
                file.write(piece)
                left -= len(piece)
        made.append(
            {
                "path": path,
                "kind": "base_backup",
                "database": "bench",
                "unit": unit,
                "day": DAY.isoformat(),
                "size_bytes": length,
                "sha256": digest.hexdigest(),
            }
        )
    return made


def _in_a_process(way: str, name: str, root: Path, artifacts: list[dict[str, object]], url: str) -> Measured:
    """Upload in a process of its own, and look all the while at what it has open for writing."""
    task = {"way": way, "name": name, "root": str(root / "backup"), "artifacts": artifacts, "url": url}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    from pitr_pipelines_tests.offsite.s3_server import ACCESS_KEY, SECRET_KEY

    environment |= {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    files: set[str] = set()
    while process.poll() is None:
        files |= _open_for_writing(process.pid)
        time.sleep(0.02)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way}: the upload failed with {process.returncode}")
    found = json.loads(said)
    return Measured(**found | {"files_written": tuple(sorted(files))})


def _open_for_writing(pid: int) -> set[str]:
    """Return the regular files that a process has open for writing now."""
    found = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            flags = int(info.partition("flags:")[2].split()[0], 8)
            writes = flags & os.O_ACCMODE != os.O_RDONLY and stat.S_ISREG(descriptor.stat().st_mode)
            # The first three are ours: where its messages go.
            if writes and int(descriptor.name) > 2:
                found.add(str(descriptor.readlink()))
    except OSError:
        # It, or a file of its, is gone in the meantime.
        pass
    return found


def _upload(task: dict[str, object]) -> None:
    """Be the process that uploads: say on standard output what it took."""
    from pitr_pipelines.offsite.encryption import generate_identity, parse_recipients
    from pitr_pipelines.offsite.envelope import plan_envelope
    from pitr_pipelines.offsite.envelope_index import Artifact
    from pitr_pipelines.offsite.object_store import ObjectStore
    from pitr_pipelines.offsite.parts import PartsStore

    way, listed = str(task["way"]), task["artifacts"]
    assert isinstance(listed, list)
    recipients = parse_recipients([generate_identity()[1]]) if "encrypted" in way else None
    plan = plan_envelope(
        [Artifact.model_validate(one) for one in listed],
        day=DAY,
        made_at=AT,
        recipients=recipients,
        limit_bytes=None,
    )
    place = Place(
        bucket="backups", region="us-east-1", endpoint_url=str(task["url"]), addressing_style="path"
    )
    # Whatever its size, as if one request did not carry it.
    store = PartsStore(place, one_request_bytes=0) if way.startswith("in parts") else ObjectStore(place)
    written, cpu_s, begun = _written_bytes(), time.process_time(), time.monotonic()
    with EnvelopeStream(plan, Path(str(task["root"]))) as stream:
        if way == BASELINE:
            _with_boto3(stream, place, str(task["name"]))
        else:
            outcome = store.put(
                str(task["name"]), stream, plan.size_bytes, call_id="bench", at=datetime.now(UTC)
            )
            if outcome.verdict != "stored":
                raise SystemExit(f"{way}: {outcome.said}")
    measured = Measured(
        size_bytes=plan.size_bytes,
        wall_s=time.monotonic() - begun,
        cpu_s=time.process_time() - cpu_s,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        written_bytes=_written_bytes() - written,
        requests=dict(store.requests),
    )
    print(json.dumps(asdict(measured)))


def _with_boto3(stream: EnvelopeStream, place: Place, name: str) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=place.endpoint_url,
        region_name=place.region,
        config=Config(s3={"addressing_style": "path"}),
    )
    client.upload_fileobj(stream, place.bucket, name)  # type: ignore[arg-type]


def _written_bytes() -> int:
    """Return how many bytes this process has had written to disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


if __name__ == "__main__":
    sys.exit(main())
