"""How long a server may be silent in the middle of a conversation.

libpq waits for an answer for ever where the server's kernel still acknowledges what it gets: a server whose
disk hangs, say, or whose processes are stopped. One such server must not hold up what is done for all.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from pitr_pipelines.errors import PitrError, ServerUnavailable
from pitr_pipelines.postgres.connection import server_address


@contextmanager
def answering_within(connection: psycopg.Connection[Any], timeout_s: float) -> Iterator[None]:
    """Break a connection that is still in use after `timeout_s` seconds.

    Raises ServerUnavailable then, in place of what that led to.
    """
    address = server_address(connection)
    late = threading.Event()

    def cut() -> None:
        late.set()
        # Closing it belongs to its own thread, which is waiting on it: this only ends the wait.
        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(connection.fileno())) as shared,
        ):
            shared.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (PitrError, psycopg.Error):
        if not late.is_set():
            raise
        raise ServerUnavailable(
            f"the server at {address} took our connection, and then gave no answer for {timeout_s:.0f} s",
            remedy="Do its disk and its file system still answer? Look into its log, and at "
            "pg_stat_activity if it lets you in.",
        ) from None
    finally:
        timer.cancel()
