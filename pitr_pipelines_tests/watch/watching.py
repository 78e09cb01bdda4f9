"""A watch over real servers, whose clock is turned by hand: no test waits for minutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.round import Round, watch_once
from pitr_pipelines.watch.state import StateFile
from pitr_pipelines_tests.watch.conftest import VARIABLE

ALERTS: dict[str, Any] = {
    "to_env": [VARIABLE],
    "quiet_s": 300,
    "gap_s": 0,
    "server_grace_s": 180,
    "archive_slack_s": 0,
    "min_free_percent": 0,
}


@dataclass
class Watching:
    """Rounds at moments that go on as told. The servers' clocks are what they are."""

    settings: Settings
    local: Path
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    last: Round | None = None

    def look(self, *, minutes: float = 2, **more: Any) -> Round:
        """Look once, `minutes` after the last time."""
        if self.last is not None:
            self.now += timedelta(minutes=minutes)
        self.last = watch_once(
            self.settings,
            now=self.now,
            state_file=StateFile(self.settings.backup_root, local=self.local),
            **more,
        )
        return self.last

    def looks(self, count: int, *, minutes: float = 2) -> Round:
        """Look several times."""
        for _ in range(count - 1):
            self.look(minutes=minutes)
        return self.look(minutes=minutes)

    def open(self) -> set[str]:
        """Return the keys of the incidents that were open at the last look."""
        assert self.last is not None
        return {life.incident.key for life in self.last.open}
