"""Two configurations with other databases on one backup_root: what docs/kubernetes/README.md says of them."""

from __future__ import annotations

from pitr_pipelines.catalog.manifest import read_manifest, refresh_manifest
from pitr_pipelines.offsite.envelope_reader import open_envelope
from pitr_pipelines.offsite.standing import look_at_standing
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.offsite.copy_scene import Held, MakeSettings, clock_at, copied, layout_of
from pitr_pipelines_tests.offsite.s3_server import CountingProxy


def only(settings: Settings, *names: str) -> Settings:
    return settings.model_copy(update={"databases": {name: settings.databases[name] for name in names}})


def test_the_budget_holds_and_the_one_call_carries_the_first_ones_databases_only(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    both = make_settings()
    first, second = only(both, "order-db"), only(both, "users")
    copied(first, wait=False)
    writes = proxy.writes

    late = copied(second, wait=False)

    assert not late.made
    assert set(late.databases) == {"order-db"}
    # It is not silent: what is missing is an alert, offsite-incomplete, at every look.
    standing = look_at_standing(second, now=clock_at(20)())
    assert standing.missing == ("users",)
    assert [one.problem for one in standing.completeness if "users" in one.problem]
    assert (proxy.writes, writes) == (1, 1)
    carried = {entry.artifact.database for entry in open_envelope(Held(both)).index.members}
    assert carried - {None} == {"order-db"}


def test_each_writes_the_manifest_of_its_own_databases_alone(make_settings: MakeSettings) -> None:
    both = make_settings()
    refresh_manifest(both)
    assert set(read_manifest(layout_of(both)).databases) == {"order-db", "users"}
    refresh_manifest(only(both, "users"))
    assert set(read_manifest(layout_of(both)).databases) == {"users"}
