"""Freshness policies: each asset's age against what is promised, so that the graph is green when it holds.

They count when Dagster knows of something new, whatever partition it is of: a backfill of an old hour
looks fresh, too. The asset checks and the watch read the storage itself, and have the last word.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import dagster as dg

from pitr_pipelines.defs.names import BASE_BACKUP, OFFSITE_COPY, RESTORE_POINTS, WAL_BUNDLE, asset_key
from pitr_pipelines.defs.restore_drill import RESTORE_DRILL
from pitr_pipelines.offsite_settings import OffsiteSettings
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.promises import promises_of

Asset = dg.AssetsDefinition | dg.AssetSpec

_COPY_MAY_TAKE = timedelta(hours=1)


def with_freshness(settings: Settings, assets: Iterable[Asset]) -> list[Asset]:
    """Return the assets, each with the policy that its database's promises give it."""
    policies = _policies(settings)

    def fresh(spec: dg.AssetSpec) -> dg.AssetSpec:
        policy = policies.get(spec.key)
        return spec if policy is None else spec.replace_attributes(freshness_policy=policy)

    return [
        asset.map_asset_specs(fresh) if isinstance(asset, dg.AssetsDefinition) else fresh(asset)
        for asset in assets
    ]


def _policies(settings: Settings) -> dict[dg.AssetKey, dg.FreshnessPolicy]:
    policies: dict[dg.AssetKey, dg.FreshnessPolicy] = {}
    points = []
    for name in settings.databases:
        promises = promises_of(settings, name)
        points.append(promises.recovery_point)
        policies[asset_key(name, WAL_BUNDLE)] = _within(promises.recovery_point)
        policies[asset_key(name, BASE_BACKUP)] = _within(promises.base_age)
        policies[asset_key(name, RESTORE_DRILL)] = _within(timedelta(days=settings.drills.max_age_days))
    policies[RESTORE_POINTS] = _within(max(points))
    if settings.offsite is not None:
        policies[OFFSITE_COPY] = _by_the_deadline(settings.offsite)
    return policies


def _within(age: timedelta) -> dg.FreshnessPolicy:
    # Dagster takes no window below a minute.
    return dg.FreshnessPolicy.time_window(fail_window=max(age, timedelta(minutes=1)))


def _by_the_deadline(offsite: OffsiteSettings) -> dg.FreshnessPolicy:
    """The day's copy is there an hour after the deadline; it may have been made any time that day."""
    day = datetime(2026, 1, 1)  # noqa: DTZ001, only the time of a day is taken from it
    deadline = datetime.combine(day, offsite.deadline_at)
    last_minute = day + timedelta(hours=23, minutes=59)
    until = min(deadline + _COPY_MAY_TAKE, last_minute)
    return dg.FreshnessPolicy.cron(
        deadline_cron=f"{until.minute} {until.hour} * * *",
        lower_bound_delta=max(until - day, timedelta(minutes=1)),
        timezone=offsite.api_calls.day_in,
    )
