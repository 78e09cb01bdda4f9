"""Every asset's page says whose it is, what it is, where to read on, and which code makes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import pitr_pipelines
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.errors import SettingsError
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.defs.storage import make_settings

ROOT = Path(pitr_pipelines.__file__).parents[1]
OFFSITE = {"store": {"bucket": "backups"}, "recipients": [], "unencrypted": True}
CODE, DOCS = "https://git.example.com/pitr/blob/main", "https://git.example.com/pitr/blob/main/docs"


@pytest.fixture
def everything(tmp_path: Path) -> Settings:
    """Two databases and an off-site copy, so that there is one of each asset; one has an owner of its own."""
    dsn = "host=127.0.0.1 port=1 user=pitr"
    databases = {"order-db": {"dsn": dsn, "owners": ["team:shop"]}, "inventory-db": {"dsn": dsn}}
    return _settings(tmp_path, databases=databases, owners=["team:dba", "dba@example.com"])


def _settings(tmp_path: Path, *, databases: dict[str, Any] | None = None, **dagster: object) -> Settings:
    more = {"databases": databases} if databases else {}
    return make_settings(tmp_path, offsite=OFFSITE, dagster=dagster, **more)


def _specs(settings: Settings) -> list[dg.AssetSpec]:
    specs = list(build_definitions(settings).resolve_all_asset_specs())
    assert len(specs) == 5 * len(settings.databases) + 2
    return specs


def _reference(spec: dg.AssetSpec) -> dg.LocalFileCodeReference | dg.UrlCodeReference:
    (reference,) = spec.metadata["dagster/code_references"].code_references
    assert isinstance(reference, dg.LocalFileCodeReference | dg.UrlCodeReference)
    return reference


def test_every_asset_has_owners_kinds_a_group_and_a_description(everything: Settings) -> None:
    for spec in _specs(everything):
        own = spec.key.path[0] == "order_db"
        assert list(spec.owners) == (["team:shop"] if own else ["team:dba", "dba@example.com"])
        assert spec.kinds
        assert spec.group_name not in (None, "default")
        assert spec.description is not None
        assert len(spec.description) > 60


def test_a_description_names_a_page_of_the_docs_that_is_there(everything: Settings) -> None:
    for spec in _specs(everything):
        named = re.search(r"\n\nMore in `(docs/[a-z-]+\.md)`\.$", spec.description or "")
        assert named, spec.key
        assert (ROOT / named[1]).exists()


def test_a_description_links_to_the_docs_where_these_are_published(tmp_path: Path) -> None:
    for spec in _specs(_settings(tmp_path, docs_url=f"{DOCS}/")):
        assert re.search(rf"More in \[docs/([a-z-]+\.md)\]\({DOCS}/\1\)\.$", spec.description or ""), spec.key


def test_the_code_that_is_referred_to_makes_the_asset(everything: Settings) -> None:
    for spec in _specs(everything):
        reference = _reference(spec)
        assert isinstance(reference, dg.LocalFileCodeReference)
        lines = Path(reference.file_path).read_text().splitlines()
        assert lines[(reference.line_number or 0) - 1].startswith("def "), spec.key


def test_the_code_is_a_link_where_the_repository_is_published(tmp_path: Path) -> None:
    for spec in _specs(_settings(tmp_path, code_url=CODE)):
        reference = _reference(spec)
        assert isinstance(reference, dg.UrlCodeReference)
        place = re.fullmatch(rf"{CODE}/(pitr_pipelines/defs/[a-z_]+\.py)#L[0-9]+", reference.url)
        assert place, spec.key
        assert (ROOT / place[1]).exists()


def test_what_an_asset_said_before_it_still_says(everything: Settings) -> None:
    by_key = {spec.key.to_user_string(): spec for spec in _specs(everything)}
    archive = by_key["order_db/wal_archive"]
    assert archive.metadata["path"].value == str(everything.backup_root / "wal" / "order-db")
    assert by_key["order_db/wal_bundle"].freshness_policy is not None
    assert by_key["order_db/wal_bundle"].tags["pitr/database"] == "order-db"


@pytest.mark.parametrize(
    "owner", ["dba", "team:", "dba@", "team:a b", "a@b", "two@example.com, three@example.com"]
)
def test_an_owner_that_dagster_would_not_take_is_refused_with_the_settings(
    tmp_path: Path, owner: str
) -> None:
    with pytest.raises(SettingsError, match=r"dagster\.owners\.0: is neither an e-mail address nor a team"):
        _settings(tmp_path, owners=[owner])


@pytest.mark.parametrize("url", ["git.example.com", "https://user:secret@git.example.com/x", "file:///docs"])
def test_a_link_that_leads_nowhere_or_tells_a_secret_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"dagster\.docs_url") as refused:
        _settings(tmp_path, docs_url=url)
    assert "secret" not in str(refused.value)
