"""A short round of the randomized oracle; `make soak` plays more of them, for as long as asked."""

from __future__ import annotations

import os

import pytest

from pitr_pipelines_tests.oracle.run import Round, play
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("PITR_ORACLE_SEED", "20260129"))


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_random_targets_of_a_random_story_are_restored_exactly_or_refused_for_a_reason(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    asked = Round(seed=SEED, major=major, events=14, targets=9, segment_size_mb=1)
    assert play(asked, server_factory, pitr_settings, print) >= 15
