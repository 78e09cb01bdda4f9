"""The demo's place off-site: an S3 server of its own, a bucket, and a key pair that it makes.

Credentials reach Dagster the boto3 way, through a file that only our user can read. The secret key of the
copy lies in another, which backups are never told of.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitr_pipelines.demo.processes import Process, marked_environment
from pitr_pipelines.demo.s3_server import ALL, User, make_buckets, prepare_s3_server
from pitr_pipelines.offsite.encryption import generate_identity

BUCKET = "far-away"
_REGION = "us-east-1"


def forget_callers_cloud() -> None:
    """Take whatever leads boto3 elsewhere out of our environment, and loopback out of any proxy's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "BOTO_"))]:
        del os.environ[name]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


@dataclass(frozen=True)
class OffsitePlace:
    """An S3 server that is starting; `settings` is the key `offsite` of pitr.yaml for it."""

    process: Process
    url: str
    admin: User
    key_file: Path
    settings: Mapping[str, Any]

    def wait_until_ready(self) -> None:
        """Make the bucket as soon as the server answers. Raises PitrError with its log if it ends."""
        make_buckets(self.url, self.admin, {BUCKET: False}, self.process.check)


def open_offsite_place(place: Path) -> OffsitePlace:
    """Start the S3 server, and let this process and its children know their credentials by a file."""
    directory = place / "far-away"
    directory.mkdir(mode=0o700)
    admin, user = (
        User(name, secrets.token_hex(8), secrets.token_urlsafe(24), *actions)
        for name, actions in (("admin", (ALL,)), ("backup", ()))
    )
    credentials = place / "credentials"
    _write_private(
        credentials,
        f"[default]\naws_access_key_id = {user.access_key}\naws_secret_access_key = {user.secret_key}\n",
    )
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(credentials)
    os.environ["AWS_CONFIG_FILE"] = os.devnull
    secret, public = generate_identity()
    key_file = place / "secret-key.txt"
    _write_private(key_file, secret + "\n")
    command = prepare_s3_server(directory, (admin, user))
    process = Process.start(
        "the S3 server", command.arguments, place / "logs" / "s3.log", marked_environment(place, {})
    )
    settings = {
        "store": {
            "bucket": BUCKET,
            "prefix": "demo/",
            "region": _REGION,
            "endpoint_url": command.url,
            "addressing_style": "path",
        },
        "recipients": [public],
    }
    return OffsitePlace(process, command.url, admin, key_file, settings)


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
