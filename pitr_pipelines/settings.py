"""pitr.yaml: what is backed up, where to, and when. Read once, validated, then never changed.

Reading the settings touches no server and no directory but the file itself. They hold no
password: those come the libpq way, or from an environment variable or a file that is named here.
"""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from pitr_pipelines.alert_settings import AlertSettings, Objectives
from pitr_pipelines.errors import BadRequest, SettingsError
from pitr_pipelines.offsite_settings import OffsiteSettings

CONFIG_VARIABLE = "PITR_CONFIG"
DEFAULT_FILE = "pitr.yaml"

_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_SECRET_IN_DSN = re.compile(
    r"(?i)(^|[\s?&'])((ssl)?password|oauth_client_secret|scram_(client|server)_key)\s*="
    r"|^postgres(ql)?://[^/@\s]*:[^/@\s]*@"
)


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; write it as Europe/Paris or UTC") from None
    return name


def _cron(expression: str) -> str:
    if len(expression.split()) != 5:
        raise ValueError(f"{expression!r} is not a cron expression of five fields, such as '0 3 * * *'")
    return expression


def _without_password(dsn: str) -> str:
    if _SECRET_IN_DSN.search(dsn) or _SECRET_IN_DSN.search(unquote(dsn)):
        raise ValueError(
            "holds a password; take it out and use PGPASSFILE, a service file, or name a file that "
            "holds it in `password_file`, or an environment variable in `password_env`"
        )
    return dsn


def _one_query(query: str) -> str:
    if not query.strip():
        raise ValueError(
            "is empty; write a query that gives one value, such as select count(*) > 0 from orders"
        )
    return query.strip()


TimeZone = Annotated[str, AfterValidator(_time_zone)]
Cron = Annotated[str, AfterValidator(_cron)]
Dsn = Annotated[str, AfterValidator(_without_password)]
Query = Annotated[str, AfterValidator(_one_query)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DrillCheck(_Model):
    """A query that a restored copy must answer with one value: `expect`."""

    query: Query = Field(description="SQL that gives one row of one column; it runs read-only")
    expect: StrictBool | StrictInt | StrictFloat | StrictStr = Field(
        default=True, description="true, false, a number, or text as psql would show the value"
    )
    dbname: str | None = Field(
        default=None, min_length=1, description="the database to ask; default: the dsn's"
    )


class DatabaseSettings(_Model):
    """One PostgreSQL cluster under backup."""

    dsn: Dsn = Field(description="libpq connection string of the backup role, without a password")
    password_env: str | None = Field(
        default=None, description="environment variable that holds the role's password"
    )
    password_file: Path | None = Field(
        default=None,
        description="file that holds the role's password and nothing else, such as a mounted secret; read "
        "at each connection. Not together with `password_env`",
    )
    archive_directory: str | None = Field(
        default=None,
        description="the WAL archive's directory as the server sees it; default: "
        "`<backup_root>/wal/<database>`",
    )
    archive_script: str | None = Field(
        default=None,
        description="wal-archive.sh as the server sees it; default: a copy that init-db puts at "
        "`<backup_root>/bin/wal-archive.sh`",
    )
    archive_timeout_s: int = Field(
        default=60, ge=0, le=86400, description="archive_timeout that init-db sets, in seconds"
    )
    drill_checks: tuple[DrillCheck, ...] = Field(
        default=(), description="what a drill asks the restored copy"
    )
    objectives: Objectives = Field(
        default=Objectives(), description="what is promised; what is left out follows from the schedules"
    )

    @model_validator(mode="after")
    def _one_password(self) -> DatabaseSettings:
        if self.password_env is not None and self.password_file is not None:
            raise ValueError("names a password_env and a password_file; keep the one that holds the password")
        return self

    @property
    def has_password(self) -> bool:
        """Whether the settings themselves name a password, so that libpq's ways do not count."""
        return self.password_env is not None or self.password_file is not None


class Schedules(_Model):
    """When the schedules fire: cron expressions in `timezone`."""

    base_backup: Cron = Field(default="0 3 * * *", description="every database's base backup of the day")
    bundle: Cron = Field(
        default="1 * * * *",
        description="the bundles of the hour that just ended; keep it soon after the hour",
    )
    checks: Cron = Field(default="30 */6 * * *", description="Dagster's checks of every database's artifacts")
    retention: Cron = Field(
        default="0 6 * * *", description="what is no longer kept is removed; only with `retention`"
    )


class BaseBackupSettings(_Model):
    """How base backups are taken."""

    compression: Literal["auto", "zstd", "gzip", "none"] = Field(
        default="auto", description="auto: zstd where pg_basebackup was built with it, else gzip"
    )
    workers: int = Field(default=2, ge=1, le=64, description="compression threads (zstd)")
    fast_checkpoint: bool = Field(
        default=True, description="start at once with an immediate checkpoint, or wait for the next"
    )


class BundleSettings(_Model):
    """How hours of WAL are bundled."""

    workers: int | None = Field(default=None, ge=1, le=64, description="threads; default: every core")
    archive_wait_s: float = Field(
        default=60.0,
        gt=0,
        description="how long to wait for a sealed segment to arrive in the archive, in seconds",
    )
    keep_raw_hours: int = Field(
        default=2,
        ge=0,
        description="hours for which raw segments stay after the bundle that holds them was verified",
    )


class DrillSettings(_Model):
    """How restores are tried out, and how often."""

    schedule: Cron = Field(default="0 5 * * 0", description="when the drills run, in `timezone`")
    max_age_days: float = Field(
        default=8,
        gt=0,
        description="a last good drill older than this, in days, is an incident and fails the asset check",
    )
    amcheck: bool = Field(default=True, description="run pg_amcheck over every database of the copy")
    check_timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="how long one of the `drill_checks` may take, in seconds"
    )


class KeepSettings(_Model):
    """What is kept, of every database; docs/retention.md says it with an example.

    `hourly_days`: every moment of the last so many days can be restored. The others are generations: of
    the newest so many days, weeks (ISO) and months (UTC) that have a base backup which counts, the newest
    base of each stays, with the WAL up to the first sealed hour's end after it.
    """

    hourly_days: int = Field(ge=1, le=36500, description="days of which every moment can be restored")
    daily: int = Field(ge=0, le=36500, description="days of which the newest base is kept")
    weekly: int = Field(ge=0, le=5200, description="weeks of which the newest base is kept")
    monthly: int = Field(ge=0, le=1200, description="months of which the newest base is kept")


class RetentionSettings(_Model):
    """What may be deleted. Without these settings, nothing ever is."""

    keep: KeepSettings = Field(description="of which moments, days, weeks and months")
    require_offsite: StrictBool = Field(
        description="true: a file is only deleted here when it is confirmed off-site; false: at once"
    )


class DagsterSettings(_Model):
    """How much of its own history Dagster keeps."""

    keep_runs_days: int = Field(
        default=30, ge=1, description="runs older than this are forgotten once what they made is gone"
    )
    restored_servers: Literal["keep", "stop"] = Field(
        default="keep",
        description="what becomes of a restored server when its run is done; stop where each run is a "
        "container of its own, with which a server in it would end",
    )
    executor: Literal["processes", "k8s"] = Field(
        default="processes",
        description="how a run takes the base backups of several databases: `processes`, two at a time; "
        "`k8s`, each in a pod of its own (needs dagster-k8s; docs/kubernetes/)",
    )


class Settings(_Model):
    """Everything in pitr.yaml."""

    backup_root: Path = Field(
        description="where backups are kept: `base/` `wal/` `bundles/` `manifests/` and more"
    )
    restore_root: Path = Field(
        description="where restores create their new directories; never inside `backup_root`"
    )
    timezone: TimeZone = Field(
        default="UTC", description="zone of times given without an offset, and of the schedules"
    )
    first_day: date = Field(default=date(2026, 1, 1), description="first day of the Dagster partitions (UTC)")
    databases: dict[str, DatabaseSettings] = Field(
        min_length=1,
        description="one entry for each PostgreSQL cluster; its name has lower-case letters, digits, - and "
        "_, at most 40, and becomes a directory and, with _ for -, an asset key",
    )
    schedules: Schedules = Field(default=Schedules(), description="when the schedules fire")
    base_backup: BaseBackupSettings = Field(
        default=BaseBackupSettings(), description="how base backups are taken"
    )
    bundle: BundleSettings = Field(default=BundleSettings(), description="how hours of WAL are bundled")
    drills: DrillSettings = Field(
        default=DrillSettings(), description="how restores are tried out, and how often"
    )
    dagster: DagsterSettings = Field(
        default=DagsterSettings(), description="how much of its own history Dagster keeps"
    )
    offsite: OffsiteSettings | None = Field(
        default=None, description="the off-site copy; without it, backups stay on this machine"
    )
    retention: RetentionSettings | None = Field(
        default=None, description="what is kept for how long; without it, nothing is ever deleted"
    )
    alerts: AlertSettings = Field(
        default=AlertSettings(), description="who is told of incidents, and from when on something is one"
    )
    binaries: dict[int, Path] = Field(
        default_factory=dict,
        description="PostgreSQL's bin directory for a major version: `{17: /opt/pg17/bin}`; default: where "
        "it is found",
    )
    run_as: str | None = Field(
        default=None,
        description="system user that restored servers run as when this runs as root; "
        "default: postgres, else nobody",
    )

    @model_validator(mode="after")
    def _check_database_names(self) -> Settings:
        keys: dict[str, str] = {}
        for name in self.databases:
            if not _DATABASE_NAME.fullmatch(name):
                raise ValueError(
                    f"databases.{name}: a name starts with a lower-case letter, goes on with a-z, 0-9, "
                    "- or _, and has at most 40 characters, because it becomes a path and an asset key"
                )
            other = keys.setdefault(asset_name(name), name)
            if other != name:
                raise ValueError(f"databases.{name}: gives the same asset key as {other}; rename one")
        return self

    @model_validator(mode="after")
    def _check_retention(self) -> Settings:
        if self.retention is None:
            return self
        if self.retention.require_offsite and self.offsite is None:
            raise ValueError(
                "retention.require_offsite: true waits for an off-site copy, and there are no `offsite` "
                "settings; add them, or say false to delete local copies that exist nowhere else"
            )
        if self.bundle.keep_raw_hours > 24 * self.retention.keep.hourly_days:
            raise ValueError(
                "bundle.keep_raw_hours: raw WAL would stay longer than retention.keep.hourly_days keeps the "
                "bundles that vouch for it; make it at most 24 times that"
            )
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def database(self, name: str) -> DatabaseSettings:
        """Return one database's settings. Raises BadRequest, naming those configured."""
        try:
            return self.databases[name]
        except KeyError:
            raise BadRequest(
                f"there is no database {name!r} in the settings",
                remedy=f"Configured are: {', '.join(sorted(self.databases))}.",
            ) from None

    def offsite_copy(self) -> OffsiteSettings:
        """Return the off-site copy's settings. Raises BadRequest if there are none."""
        if self.offsite is None:
            raise BadRequest(
                "the settings name no off-site copy",
                remedy="Add `offsite:` with at least `store: {bucket: ...}` and `recipients`; the example "
                "pitr.yaml shows all of it.",
            )
        return self.offsite


def asset_name(database: str) -> str:
    """Return a database's name as it stands in asset keys and groups: `order_db`."""
    return database.replace("-", "_")


def load_settings(path: Path | str | None = None) -> Settings:
    """Read the settings from `path`, else from the file in $PITR_CONFIG, else from ./pitr.yaml.

    Relative paths in it are taken from the file's own directory. Raises SettingsError, which names
    the key that does not fit.
    """
    file = Path(path or os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings {file}: {error.strerror}",
            remedy=f"Write one (pitr.yaml in the repository is a commented example) and name it in "
            f"{CONFIG_VARIABLE} or with --config.",
        ) from None
    try:
        values = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        # Not the error's own text: that may quote the line, and with it a connection string.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise SettingsError(
            f"{file} is not YAML: {getattr(error, 'problem', None) or getattr(error, 'reason', None)}{where}",
            remedy="Correct what it names.",
        ) from None
    if not isinstance(values, dict):
        raise SettingsError(
            f"{file} holds no settings", remedy="It needs at least backup_root, restore_root and databases."
        )
    return parse_settings(values, source=file)


def parse_settings(values: dict[str, Any], *, source: Path) -> Settings:
    """Validate settings that were read from `source`. Raises SettingsError."""
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        # Never pydantic's own text: it prints the value, which may be a connection string.
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError(
            f"{source} has {'a value that does' if len(problems) == 1 else 'values that do'} not fit:\n  "
            + "\n  ".join(problem.replace("Value error, ", "") for problem in problems),
            remedy="Correct the keys named above; docs/settings.md and the example pitr.yaml say what each "
            "takes.",
        ) from None
    here = source.resolve().parent
    offsite = settings.offsite
    if offsite is not None and offsite.store.ca_bundle is not None:
        bundle = str(here / offsite.store.ca_bundle)
        offsite = offsite.model_copy(update={"store": offsite.store.model_copy(update={"ca_bundle": bundle})})
    alerts = settings.alerts
    if alerts.to_file is not None:
        alerts = alerts.model_copy(update={"to_file": here / alerts.to_file})
    return settings.model_copy(
        update={
            "alerts": alerts,
            "backup_root": here / settings.backup_root,
            "databases": {
                name: database.model_copy(update={"password_file": here / database.password_file})
                if database.password_file is not None
                else database
                for name, database in settings.databases.items()
            },
            "restore_root": here / settings.restore_root,
            "offsite": offsite,
            "binaries": {major: here / path for major, path in settings.binaries.items()},
        }
    )
