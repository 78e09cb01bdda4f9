"""What a check tells: one text for a person, numbers that Dagster plots, tables of what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg

from pitr_pipelines.catalog.health import (
    BaseHealth,
    BundlesHealth,
    ChainHealth,
    Finding,
    WindowHealth,
    check_window,
)
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.verify import verify_manifest_entries
from pitr_pipelines.defs.failures import from_system
from pitr_pipelines.defs.metadata import Metadata
from pitr_pipelines.errors import PitrError
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.watch.promises import promises_of

SHOWN = 20
"""How many findings a description lists; all are in the metadata."""
SETTLING = timedelta(minutes=15)
"""How long the manifest may be behind a record: a run over many hours refreshes it at its end."""


@dataclass(frozen=True)
class Answer:
    """What one check found: nothing, or what is wrong; `text` says it either way."""

    text: str
    metadata: Metadata = field(default_factory=dict)
    problems: int = 0
    serious: bool = True

    @classmethod
    def of(cls, good: str, metadata: Metadata, findings: Sequence[Finding]) -> Answer:
        """Return `good` if there are no findings, else each of them and what to do next."""
        metadata = {**metadata, "problems": dg.MetadataValue.int(len(findings))}
        if not findings:
            return cls(good, metadata)
        rows = [{"problem": one.problem, "remedy": one.remedy} for one in findings]
        metadata["findings"] = _table(rows)
        lines = [one.problem for one in findings[:SHOWN]]
        if len(findings) > SHOWN:
            lines.append(f"and {len(findings) - SHOWN} more: see `findings` in the metadata.")
        lines += dict.fromkeys(one.remedy for one in findings[:SHOWN])
        return cls("\n".join(lines), metadata, len(findings), any(one.lost for one in findings))

    @classmethod
    def failed(cls, error: PitrError) -> Answer:
        """Return that a check could not do its work."""
        return cls.of("", {}, [Finding(error.what, error.remedy)])


Check = Callable[[], Answer]


def answer_of(
    context: dg.AssetCheckExecutionContext, settings: Settings, key: dg.AssetCheckKey, check: Check
) -> dg.AssetCheckResult:
    """Run a check and return what it found; one that cannot do its work has failed."""
    answer = _answer(settings, check)
    if answer.problems:
        context.log.warning(f"{key.to_user_string()}: {answer.text}")
    return dg.AssetCheckResult(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=not answer.problems,
        severity=dg.AssetCheckSeverity.ERROR if answer.serious else dg.AssetCheckSeverity.WARN,
        description=answer.text,
        metadata=answer.metadata,
    )


def of_base(health: BaseHealth, now: datetime) -> Answer:
    """Tell of the newest base of a database."""
    record = health.record
    if record is None:
        return Answer.of("", {}, health.findings)
    age = now - record.ended_at
    metadata: Metadata = {
        "day": dg.MetadataValue.text(str(record.day)),
        "ended_at": dg.MetadataValue.timestamp(record.ended_at),
        "age_h": _hours(age),
        "files": dg.MetadataValue.int(len(record.files)),
        "size_bytes": dg.MetadataValue.int(record.size_bytes),
    }
    good = f"The base backup of {record.day}, {show_bytes(record.size_bytes)}, {show_duration(age)} old, "
    return Answer.of(good + "is what its record says.", metadata, health.findings)


def of_bundles(health: BundlesHealth) -> Answer:
    """Tell of the recent bundles of a database."""
    metadata: Metadata = {
        "bundles": dg.MetadataValue.int(len(health.hours)),
        "raw_bytes": dg.MetadataValue.int(health.raw_bytes),
    }
    if not health.hours:
        return Answer.of("", metadata, health.findings)
    span = f"{health.hours[0]} to {health.hours[-1]}"
    metadata["hours"] = dg.MetadataValue.text(span)
    good = f"{len(health.hours)} bundles, {span}, unpack to what their records say: "
    return Answer.of(f"{good}{show_bytes(health.raw_bytes)} of WAL.", metadata, health.findings)


def of_chain(health: ChainHealth) -> Answer:
    """Tell of the WAL of a database, from its oldest base on."""
    if health.first is None or health.last is None:
        return Answer.of("", {}, health.findings)
    metadata: Metadata = {
        "first_segment": dg.MetadataValue.text(str(health.first)),
        "last_segment": dg.MetadataValue.text(str(health.last)),
        "segments": dg.MetadataValue.int(health.segments),
        "gaps": dg.MetadataValue.int(len(health.gaps)),
    }
    if health.gaps:
        rows = [{"first": str(gap.first), "last": str(gap.last)} for gap in health.gaps]
        metadata["missing_segments"] = _table(rows)
    good = f"All {health.segments} segments from {health.first} to {health.last} are there."
    return Answer.of(good, metadata, health.findings)


def of_manifest(settings: Settings) -> Answer:
    """Compare the manifest with the records of every database."""
    findings = []
    for name in settings.databases:
        try:
            problems = read_inventory(Layout(settings.backup_root), name).problems
        except OSError as error:
            findings.append(_unreadable(name, error))
            continue
        remedy = f"Put the file back from a copy, or make the artifact again: `pitr verify {name}` names it."
        findings += [Finding(f"{name}: {problem}", remedy) for problem in problems]
    entries = list(verify_manifest_entries(settings, remembered=True, settling=SETTLING))
    findings += [Finding(one.problem, one.remedy or "") for one in entries if one.problem is not None]
    metadata: Metadata = {
        "databases": dg.MetadataValue.int(len(settings.databases)),
        "path": dg.MetadataValue.path(Layout(settings.backup_root).manifest),
    }
    behind = [f"{one.database}: {one.remedy}" for one in entries if one.problem is None and one.remedy]
    if behind:
        metadata["notes"] = dg.MetadataValue.text("\n".join(behind))
    good = f"The manifest says what the records of {_databases(len(settings.databases))} say."
    return Answer.of(good, metadata, findings)


def of_windows(settings: Settings, now: datetime) -> Answer:
    """Tell how near to now each database can be restored."""
    found: list[WindowHealth] = []
    findings = []
    for name in settings.databases:
        try:
            inventory = read_inventory(Layout(settings.backup_root), name)
        except OSError as error:
            findings.append(_unreadable(name, error))
            continue
        promised = promises_of(settings, name)
        found.append(check_window(inventory, now=now, reach=promised.recovery_point, length=promised.window))
        findings += found[-1].findings
    behind = [one.behind for one in found if one.behind is not None]
    metadata: Metadata = {
        "databases": dg.MetadataValue.int(len(settings.databases)),
        "covered": dg.MetadataValue.int(sum(not one.findings for one in found)),
        "allowed_h": _hours(max(promises_of(settings, name).recovery_point for name in settings.databases)),
        "windows": _table(_window_row(one) for one in found) if found else dg.MetadataValue.text("none"),
    }
    good = f"Every one of {_databases(len(settings.databases))} can be restored "
    if behind:
        metadata["furthest_behind_h"] = _hours(max(behind))
        good += f"to within {show_duration(max(behind))} of now."
    return Answer.of(good, metadata, findings)


def _window_row(health: WindowHealth) -> dict[str, str | float]:
    window, behind = health.window, health.behind
    return {
        "database": health.database,
        "from": str(window.start) if window else "",
        "to": str(window.end) if window else "",
        "hours": round((window.end - window.start).total_seconds() / 3600, 2) if window else 0.0,
        "behind": show_duration(behind) if behind is not None else "",
        "last_seal": str(health.last_seal) if health.last_seal else "",
        "covered": "no" if health.findings else "yes",
    }


def _unreadable(database: str, error: OSError) -> Finding:
    found = from_system(error)
    return Finding(f"{database}: {found.what}", found.remedy)


def _databases(count: int) -> str:
    return "1 database" if count == 1 else f"{count} databases"


def _hours(span: timedelta) -> dg.FloatMetadataValue:
    return dg.MetadataValue.float(round(span.total_seconds() / 3600, 2))


def _table(rows: Iterable[dict[str, str | float] | dict[str, str]]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def _answer(settings: Settings, check: Check) -> Answer:
    if not settings.backup_root.is_dir():
        absent = PitrError(
            f"backup_root {settings.backup_root} is not there",
            remedy="Is the volume mounted? On a new installation, `pitr init-db` creates it.",
        )
        return Answer.failed(absent)
    try:
        return check()
    except PitrError as error:
        return Answer.failed(error)
    except OSError as error:
        return Answer.failed(from_system(error))
