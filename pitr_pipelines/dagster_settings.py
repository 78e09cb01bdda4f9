"""Dagster's part of pitr.yaml: its own history, its dead runs, and what its pages say of whom and where.

Settings only: nothing here needs Dagster, or an address to answer.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_MAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", re.ASCII)
_TEAM = re.compile(r"team:[\w.-]+", re.ASCII)


def _owner(name: str) -> str:
    if not (_MAIL.fullmatch(name) or _TEAM.fullmatch(name)):
        raise ValueError("is neither an e-mail address nor a team; write it as dba@example.com or team:dba")
    return name


def _link(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an address; write it as https://git.example.com/pitr/blob/main")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("holds a user, a password, a query or a fragment; everybody would see it")
    return url.rstrip("/")


Owner = Annotated[str, AfterValidator(_owner)]
"""Whom Dagster names as an asset's owner, in the two forms that it takes."""
Link = Annotated[str, AfterValidator(_link)]


class DagsterSettings(BaseModel):
    """How much of its own history Dagster keeps, how it runs, and what its pages link to."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keep_runs_days: int = Field(
        default=30, ge=1, description="runs older than this are forgotten once what they made is gone"
    )
    dead_run_after_s: int = Field(
        default=120,
        ge=10,
        le=3600,
        description="a run at work that holds no lock in `backup_root` for so long, in seconds, was killed: "
        "what it was to make is asked for again",
    )
    owners: tuple[Owner, ...] = Field(
        default=(), description="who owns the assets: e-mail addresses and teams, shown on every asset"
    )
    docs_url: Link | None = Field(
        default=None,
        description="where the files of docs/ can be read: descriptions then link to it; default: they name "
        "the page",
    )
    code_url: Link | None = Field(
        default=None,
        description="where this repository's files can be read: assets then link to it as their source; "
        "default: the files where Dagster runs",
    )
    executor: Literal["processes", "k8s"] = Field(
        default="processes",
        description="how a run takes the base backups of several databases: `processes`, two at a time; "
        "`k8s`, each in a pod of its own (needs dagster-k8s; docs/kubernetes/)",
    )
    restored_servers: Literal["keep", "stop"] = Field(
        default="keep",
        description="what becomes of a restored server when its run is done; stop where each run is a "
        "container of its own, with which a server in it would end",
    )
