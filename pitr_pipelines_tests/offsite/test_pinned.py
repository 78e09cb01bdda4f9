"""What is replaced or removed while an envelope is sent does not spoil it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines.offsite.pinned import pinned
from pitr_pipelines_tests.offsite.scenes import fill, plan_of


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "backup")
    fill(made)
    return made


def test_files_that_are_replaced_or_removed_meanwhile_are_sent_as_they_were_planned(layout: Layout) -> None:
    plan = plan_of(layout)
    with EnvelopeStream(plan, layout.root) as stream:
        expected = stream.read()

    with pinned(plan, layout.root, layout.root / "offsite" / ".sending") as root:
        durable.write_whole(layout.manifest, '{"newer": true}\n')
        for path in layout.bundles("order-db").iterdir():
            path.unlink()
        with EnvelopeStream(plan, root) as stream:
            assert stream.read() == expected


@pytest.mark.parametrize("victim", ["manifests/restore-points.json", "base/order-db/2026-01-29/base.tar"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_is_not_the_planned_one_any_more_is_noticed_before_anything_is_sent(
    layout: Layout, victim: str, gone: bool
) -> None:
    plan = plan_of(layout)
    (layout.root / victim).unlink()
    if not gone:
        (layout.root / victim).write_text("[]\n")

    with (
        pytest.raises(ArtifactDamaged, match=victim),
        pinned(plan, layout.root, layout.root / "offsite" / ".sending"),
    ):
        raise AssertionError("unreachable")


@pytest.mark.parametrize("why", [errno.EPERM, errno.EXDEV], ids=["another user's", "another volume's"])
def test_small_files_that_cannot_be_linked_are_copied(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    plan = plan_of(layout)
    link = os.link

    def refuse_histories(path: Path, name: Path) -> None:
        if path.suffix == ".history":
            raise OSError(why, os.strerror(why), str(path))
        link(path, name)

    monkeypatch.setattr(os, "link", refuse_histories)
    with (
        pinned(plan, layout.root, layout.root / "offsite" / ".sending") as root,
        EnvelopeStream(plan, root) as stream,
    ):
        assert len(stream.read()) == plan.size_bytes


def test_nothing_stays_behind_and_what_a_crash_left_is_no_hindrance(layout: Layout) -> None:
    plan = plan_of(layout)
    left = layout.root / "offsite" / ".sending"
    (left / "base").mkdir(parents=True)
    (left / "base" / "old").write_text("x")

    for _ in range(2):
        with pinned(plan, layout.root, left) as root:
            assert not (root / "base" / "old").exists()
        assert not left.exists()
    assert plan_of(layout) == plan
