"""The history file of the timeline that a server is on, asked of the server itself.

A server archives its history file only at the promotion, and only if it archives then. One that was
restored with archiving off, and goes on as the primary with archiving on, never does so; without
that file nobody can tell from where its timeline came. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from pitr_pipelines.errors import ServerNotReady, ServerUnavailable
from pitr_pipelines.postgres.connection import open_connection, parameters_of
from pitr_pipelines.postgres.password import password_of
from pitr_pipelines.settings import DatabaseSettings
from pitr_pipelines.wal.timelines import history_file_name


@dataclass(frozen=True, slots=True)
class ServerHistory:
    """A history file; `written_at` is when the server began the timeline."""

    name: str
    content: bytes
    written_at: datetime


def read_server_history(
    name: str, database: DatabaseSettings, connection: psycopg.Connection[Any], timeline: int
) -> ServerHistory:
    """Ask the server of database `name` for a history file; `connection` is an ordinary one to it.

    Raises ServerUnavailable or ServerNotReady, which also say so if the server has lost the file.
    Source: TIMELINE_HISTORY in PostgreSQL's streaming replication protocol.
    """
    file = history_file_name(timeline)
    found = connection.execute("SELECT modification FROM pg_ls_waldir() WHERE name = %s", [file]).fetchone()
    if found is None:
        raise ServerNotReady(
            f"the server of {name} is on timeline {timeline}, but has no {file} in its pg_wal",
            remedy=f"Copy {file} there from a standby or a backup; or take a new base backup.",
        )
    parameters = {**parameters_of(name, database), "replication": "true"}
    with open_connection(name, parameters, password=password_of(name, database)) as replication:
        answer = replication.pgconn.exec_(f"TIMELINE_HISTORY {timeline}".encode())
        content = answer.get_value(0, 1) if answer.ntuples else None
    if content is None:
        raise ServerUnavailable(
            f"the server of {name} does not tell {file}: {answer.error_message.decode(errors='replace')}",
            remedy=f"`pitr check {name}` says whether replication connections work.",
        )
    return ServerHistory(file, content, found[0].astimezone(UTC))
