"""Fixtures for tests against a real S3 server; what they are made of is in s3_server.py."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.offsite_settings import Place
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines_tests.offsite.copy_scene import MakeSettings
from pitr_pipelines_tests.offsite.s3_server import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    CountingProxy,
    S3Server,
    start_s3_server,
)
from pitr_pipelines_tests.offsite.scenes import fill

StoreMaker = Callable[..., ObjectStore]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = start_s3_server()
    yield server
    server.stop()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[CountingProxy]:
    """The only way to the server that the stores of a test know."""
    proxy = CountingProxy(s3_server.port)
    yield proxy
    proxy.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The environment of boto3, with the server's credentials and nothing of the caller's."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


_NUMBERS = itertools.count(1)


@pytest.fixture
def open_store(proxy: CountingProxy, credentials: None) -> StoreMaker:
    """Opens stores behind the proxy, all at one prefix of the test's own; settings as keywords."""
    prefix = f"test-{os.getpid()}-{next(_NUMBERS)}/"

    def open_one(**settings: object) -> ObjectStore:
        defaults: dict[str, object] = {
            "bucket": BUCKET,
            "prefix": prefix,
            "region": "us-east-1",
            "endpoint_url": proxy.url,
            "addressing_style": "path",
            "connect_timeout_s": 5,
            "answer_timeout_s": 20,
        }
        return ObjectStore(Place.model_validate(defaults | settings))

    return open_one


@pytest.fixture
def make_settings(tmp_path: Path, open_store: StoreMaker) -> MakeSettings:
    """Settings, also in pitr.yaml, for two databases that have files here and no server, and a store."""

    def make(*, store: dict[str, Any] | None = None, **offsite: Any) -> Settings:
        place = open_store(**(store or {})).place.model_dump(exclude_none=True, exclude_defaults=True)
        root = tmp_path / "backup"
        if not root.exists():
            fill(Layout(root), ["order-db", "users"])
        dead = "host=127.0.0.1 port=1 user=pitr dbname=postgres connect_timeout=1"
        defaults: dict[str, Any] = {"unencrypted": True} if "recipients" not in offsite else {}
        values = {
            "backup_root": str(root),
            "restore_root": str(tmp_path / "restore"),
            "databases": {name: {"dsn": dead} for name in ("order-db", "users")},
            "offsite": {"store": place, **defaults, **offsite},
        }
        file = tmp_path / "pitr.yaml"
        file.write_text(json.dumps(values))
        return load_settings(file)

    return make
