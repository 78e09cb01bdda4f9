"""Dagster's failed asset checks as incidents: damage, gaps in the WAL, windows that do not reach.

Each is over when the check passes. What the watch finds in storage by itself (drills, the off-site
copy) is told by it alone, not by their checks again.
"""

from collections.abc import Iterable, Mapping

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from pitr_pipelines.defs.checks import INTACT, MATCHES_RECORDS, VERIFIED, WAL_CONTINUOUS, WINDOW_COVERS
from pitr_pipelines.defs.names import BASE_BACKUP, RESTORE_POINTS, WAL_BUNDLE, asset_key
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.incidents import DAGSTER, Findings, Incident, Kind, Scope, Severity


def look_at_checks(instance: dg.DagsterInstance, settings: Settings) -> Findings:
    """Return the checks that failed when they ran last."""
    latest: Mapping[dg.AssetCheckKey, AssetCheckExecutionRecord] = (
        instance.event_log_storage.get_latest_asset_check_execution_by_key(list(_keys(settings)))
    )
    failed = [
        _failed(key, record)
        for key, record in latest.items()
        if record.status is AssetCheckExecutionRecordStatus.FAILED
    ]
    return Findings(tuple(failed), frozenset({(DAGSTER, Scope.CHECKS)}))


def _keys(settings: Settings) -> Iterable[dg.AssetCheckKey]:
    for name in settings.databases:
        yield dg.AssetCheckKey(asset_key(name, BASE_BACKUP), VERIFIED)
        yield dg.AssetCheckKey(asset_key(name, WAL_BUNDLE), INTACT)
        yield dg.AssetCheckKey(asset_key(name, WAL_BUNDLE), WAL_CONTINUOUS)
    yield dg.AssetCheckKey(RESTORE_POINTS, MATCHES_RECORDS)
    yield dg.AssetCheckKey(RESTORE_POINTS, WINDOW_COVERS)


def _failed(key: dg.AssetCheckKey, record: AssetCheckExecutionRecord) -> Incident:
    evaluation = record.evaluation
    said = (evaluation.description if evaluation else None) or "it does not say why"
    what, _, remedy = said.partition("\n")
    warning = evaluation is not None and evaluation.severity is dg.AssetCheckSeverity.WARN
    return Incident(
        Kind.CHECK_FAILED,
        DAGSTER,
        Scope.CHECKS,
        what,
        (remedy.replace("\n", " ") or "Open the check in Dagster.")
        + " The check runs again with `check_artifacts`.",
        Severity.WARNING if warning else Severity.CRITICAL,
        detail=f"{key.asset_key.to_user_string()}/{key.name}",
    )
