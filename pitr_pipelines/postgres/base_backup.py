"""The day's base backup of one database.

It is copied into a hidden directory beside its final place, read back and checked there against
PostgreSQL's manifest, made durable, recorded, and only then renamed. So under a day's name there is
a whole, verified base backup with its record, or none. The hidden leftovers of a killed run are
removed by the next one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BaseRecord, read_record, write_record
from pitr_pipelines.errors import ArtifactDamaged, BadRequest, PitrError, ServerUnavailable
from pitr_pipelines.postgres.base_contents import BaseContents, check_files, read_base
from pitr_pipelines.postgres.base_wal import check_wal
from pitr_pipelines.postgres.binaries import Binaries, find_binaries
from pitr_pipelines.postgres.connection import ServerIdentity, child_connection, connect, identify
from pitr_pipelines.postgres.pg_basebackup import (
    Compression,
    choose_compression,
    compress_option,
    run_pg_basebackup,
)
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.settings import Settings

log = logging.getLogger(__name__)

_TEMPORARY = ".????-??-??.*.tmp"


def take_base_backup(
    settings: Settings,
    name: str,
    *,
    day: date | None = None,
    replace: bool = False,
    progress: Report | None = None,
) -> BaseRecord:
    """Take today's base backup (UTC) of the database `name`, verified, and return its record.

    If `day` has an intact one already, nothing is done and that one's record is returned, unless
    `replace`: then a new one takes its place once it is verified, as after a gap in the WAL. `day`
    must be today then, because a server can only be copied as it is now. `progress` gets the steps
    `checkpoint` (the server prepares), `copy` (bytes of its files) and `verify` (bytes on disk).

    Raises BadRequest for an unknown database or another day, ArtifactBusy if somebody else is at the
    bases of this database, ServerUnavailable, ServerNotReady or BinariesNotFound if it cannot be
    taken, ArtifactDamaged if what arrived is not what the server sent. After any of these no base
    backup of this run is left.
    """
    database = settings.database(name)
    layout = Layout(settings.backup_root)
    today = datetime.now(UTC).date()
    day = day or today
    progress = progress or silent
    with durable.exclusive_lock(layout.base_lock(name), subject=f"the base backups of {name}", wait=False):
        _remove_leftovers(layout.bases(name))
        layout.reading_lock(name).touch(mode=durable.FILE_MODE)  # restores then change nothing here
        existing = None if replace else existing_base(settings, name, day)
        if existing is not None:
            log.info("%s has its base backup of %s already; nothing was done", name, day)
            return existing
        if day != today:
            raise _not_today(name, day, today)
        with connect(name, database) as connection:
            before = identify(connection)
        binaries = find_binaries(before.major, settings.binaries)
        options = settings.base_backup
        compression = choose_compression(options.compression, binaries)
        final = layout.base(name, day)
        temporary = durable.temporary_name(final)
        temporary.mkdir(mode=durable.DIRECTORY_MODE)
        try:
            with child_connection(name, database) as (conninfo, env):
                run_pg_basebackup(
                    name,
                    binaries.program("pg_basebackup"),
                    temporary,
                    conninfo,
                    env,
                    label=f"pitr {name} {day}",
                    compress=compress_option(compression, options.workers),
                    fast_checkpoint=options.fast_checkpoint,
                    progress=progress,
                )
            with connect(name, database) as connection:
                after = identify(connection)
            contents = _read_back(temporary, final, binaries, progress)
            _same_cluster(name, before, after, contents)
            record = _record(name, day, before, after, contents, compression)
            _publish(temporary, final, record)
        except ArtifactDamaged as error:
            raise ArtifactDamaged(
                f"the base backup of {name} did not arrive whole and was discarded: {error.what}",
                remedy="Take it again. If that happens twice, check this machine's memory and disk.",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return record


def existing_base(settings: Settings, name: str, day: date) -> BaseRecord | None:
    """Return the record of a day's base backup if there is one and its files have their sizes.

    What stands there without being usable is logged, for it will be replaced.
    """
    directory = Layout(settings.backup_root).base(name, day)
    try:
        record = read_record(directory / BASE_RECORD, BaseRecord)
        check_files(directory, record)
    except FileNotFoundError:
        return None
    except ArtifactDamaged as error:
        log.warning("the base backup of %s of %s cannot be used: %s", name, day, error.what)
        return None
    return record


def _not_today(name: str, day: date, today: date) -> BadRequest:
    if day > today:
        return BadRequest(
            f"{day} has not begun yet (it is {today} in UTC), so {name} has no base backup of it",
            remedy="Take today's, or wait.",
        )
    return BadRequest(
        f"a base backup of a past day cannot be taken from the server: {name} is no longer as it was "
        f"on {day} (it is {today} in UTC)",
        remedy="To get back to that day, restore from an older base backup and the WAL after it: "
        f'`pitr restore {name} "{day} 12:00:00"`, or the job restore in Dagster. A base backup taken now '
        "serves moments from now on.",
    )


def _remove_leftovers(bases: Path) -> None:
    """Remove what killed runs left. Only the lock's holder writes here, so nobody needs it."""
    for leftover in bases.glob(_TEMPORARY):
        log.info("removing %s, the leftover of a run that was killed", leftover)
        shutil.rmtree(leftover)


def _read_back(temporary: Path, final: Path, binaries: Binaries, progress: Report) -> BaseContents:
    # Beside the backup, because the WAL may be large and nothing says that /tmp has room for it.
    with tempfile.TemporaryDirectory(
        prefix=f".{final.name}.{os.getpid()}.wal.", suffix=".tmp", dir=final.parent
    ) as wal_directory:
        contents = read_base(temporary, wal_directory=Path(wal_directory), progress=progress)
        for wal_range in contents.manifest.wal_ranges:
            check_wal(temporary, Path(wal_directory), wal_range, binaries)
    return contents


def _same_cluster(name: str, before: ServerIdentity, after: ServerIdentity, contents: BaseContents) -> None:
    """Refuse a backup if the address led to different servers while it was taken."""
    seen = {before.system_identifier, after.system_identifier, contents.system_identifier}
    if contents.manifest.system_identifier is not None:
        seen.add(contents.manifest.system_identifier)
    if len(seen) != 1:
        raise ServerUnavailable(
            f"the dsn of {name} led to different clusters during the backup (system identifiers "
            f"{', '.join(sorted(seen))})",
            remedy=f"Let databases.{name}.dsn name one server, and take the base backup again.",
        )
    if len(contents.manifest.wal_ranges) != 1:
        raise PitrError(
            f"{name} changed its timeline while the base backup was taken",
            remedy="Take it again now that the promotion is over.",
        )


def _record(
    name: str,
    day: date,
    before: ServerIdentity,
    after: ServerIdentity,
    contents: BaseContents,
    compression: Compression,
) -> BaseRecord:
    (wal_range,) = contents.manifest.wal_ranges
    return BaseRecord(
        database=name,
        day=day,
        system_identifier=contents.system_identifier,
        server_version=before.server_version,
        timeline=wal_range.timeline,
        start_lsn=wal_range.start,
        end_lsn=wal_range.end,
        started_at=before.now,
        ended_at=after.now,
        wal_segment_size=before.wal_segment_size,
        data_checksums=before.data_checksums,
        compression=compression,
        uncompressed_bytes=contents.manifest.size_bytes,
        tablespaces=contents.tablespaces,
        files=contents.files,
    )


def _publish(temporary: Path, final: Path, record: BaseRecord) -> None:
    """Make the backup durable, with its record last, and give it its name in one step.

    What stood there before stands there until then, and goes afterwards with the leftovers.
    """
    temporary.chmod(durable.DIRECTORY_MODE)
    for file in record.files:
        path = temporary / file.name
        path.chmod(durable.FILE_MODE)
        durable.fsync_file(path)
    durable.fsync_directory(temporary)
    write_record(temporary / BASE_RECORD, record)
    if final.exists():
        durable.exchange(temporary, final)
    else:
        temporary.rename(final)
    durable.fsync_directory(final.parent)
