"""Configuring a restored cluster so that it starts here, and harms nothing.

Its configuration is that of the source, which may name the source's own directories, archive and
standbys, run its jobs, and ask for libraries or memory that this machine lacks. So what could reach
outside the restore is overridden, what does not work here is taken out of force, and every such
change that a person may miss is a note in the report. Whether it works, PostgreSQL itself is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pitr_pipelines.errors import RecoveryFailed
from pitr_pipelines.postgres.account import run
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.conf_file import (
    AUTO,
    MAIN,
    MARK,
    ConfFile,
    all_files,
    confine_includes,
    format_settings,
    parse_line,
)
from pitr_pipelines.restore.destination import Destination, fits_a_socket
from pitr_pipelines.restore.memory import available_memory
from pitr_pipelines.units import show_bytes

RECOVERY_TARGETS = (
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
)

HARMLESS: Mapping[str, str] = {
    # Nothing is archived, and nothing runs a command of the source's.
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "restore_command": "",
    # It neither follows a primary, nor waits for standbys, nor takes a subscription's changes away
    # from the server that they are meant for.
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "max_logical_replication_workers": "0",
    **dict.fromkeys(RECOVERY_TARGETS, ""),
    "recovery_min_apply_delay": "0",
    # Only this machine can connect, and the log is the restore's own.
    "listen_addresses": "127.0.0.1",
    "unix_socket_group": "",
    "bonjour": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    # What was brought back is kept.
    "fsync": "on",
}
"""Settings that keep a copy of a cluster from doing what the cluster did."""

_UNWANTED = frozenset({"external_pid_file", "promote_trigger_file"})
"""What may not be set at all: set to nothing, PostgreSQL complains, or, from 16 on, no longer knows it."""

CAPACITIES = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
"""What the source really ran with, by pg_controldata: it may have been set on its command line."""

_HOLD = {
    "hot_standby": "on",
    # It looks for more WAL that often, and writes into its log that there is none.
    "wal_retrieve_retry_interval": "1h",
}
_BLOCK = f"{MARK}what follows"

_JOB_RUNNERS = ("pg_cron", "pg_partman_bgw")
"""Libraries that only run jobs, such as the deletion of what is too old."""

_TRUSTED_LOCALLY = (
    "# written by pitr restore: the base backup held no pg_hba.conf\n"
    "local  all  all                peer\n"
    "host   all  all  127.0.0.1/32  scram-sha-256\n"
)
_BAD_SETTING = re.compile(
    r'(?:unrecognized configuration parameter|invalid value for parameter|parameter) "([\w.]+)"'
)
_BAD_LINE = re.compile(r'(?:in file|file) "([^"]+)"(?:,)? (?:near )?line (\d+)')
_ATTEMPTS = 20
_COMPUTED = "shared_memory_size"


class _Refused(Exception):
    """PostgreSQL's own words about a configuration with which it does not start."""


@dataclass(slots=True)
class Configuration:
    """The configuration of a restored cluster, while it is being made fit. `notes` are for people."""

    cluster: Cluster
    destination: Destination
    database: str
    overrides: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _original: str = field(default="", init=False)

    @property
    def _main(self) -> ConfFile:
        return self._file(MAIN)

    def _file(self, name: str) -> ConfFile:
        return ConfFile(self.cluster.data_directory / name, self.cluster.account)

    def adapt(self, control: Mapping[str, str]) -> None:
        """Make the configuration of a freshly unpacked base fit for here.

        `control` is what pg_controldata says of it. Raises RecoveryFailed if PostgreSQL cannot be
        made to accept it.
        """
        self._complete_files()
        self.overrides = {
            **HARMLESS,
            **self._own_places(),
            **{name: control[label] for name, label in CAPACITIES.items() if label in control},
        }
        for line in confine_includes(self._main.path, self.cluster.data_directory, self.cluster.account):
            self.notes.append(f"postgresql.conf: left out, because it leads out of the base backup: {line}")
        for file in all_files(self.cluster.data_directory, self.cluster.account):
            file.disable(lambda name, _: name in _UNWANTED, "a restored copy differs here")
        self._original = self._main.read()
        self._apply()
        self._make_readable()
        self._adapt_memory(int(control.get("Database block size", "8192")))
        self._adapt_ssl()
        self._adapt_libraries()
        self._check_fsync()

    @classmethod
    def reopen(cls, cluster: Cluster, destination: Destination, database: str) -> Configuration:
        """Return the configuration of a cluster that was restored before, as it is now."""
        configuration = cls(cluster, destination, database)
        text = configuration._main.read()
        before, mark, block = text.rpartition(f"\n\n{_BLOCK}")
        configuration._original = before if mark else text
        settings = (parse_line(line) for line in block.splitlines()[1:] if mark)
        configuration.overrides = dict(setting for setting in settings if setting is not None)
        return configuration

    def add(self, settings: Mapping[str, str]) -> None:
        """Override more settings."""
        self.overrides.update(settings)
        self._apply()

    def hold_in_recovery(self, timeline: int, control: Mapping[str, str]) -> None:
        """Let the server be a read-only one that follows nothing, and stays at the end of its own WAL.

        `control` is what pg_controldata says after recovery: a standby must not be smaller than the
        source was when it wrote the WAL, which may have been later than the base backup.
        """
        larger = {
            name: str(max(int(control[label]), int(self.overrides.get(name, "0"))))
            for name, label in CAPACITIES.items()
            if label in control
        }
        self.add({**larger, **_HOLD, "recovery_target_timeline": str(timeline)})

    def release(self) -> None:
        """Undo what held it in recovery."""
        for name in (*_HOLD, "recovery_target_timeline"):
            self.overrides.pop(name, None)
        self._apply()

    def replace_access_rules(self, why: str) -> None:
        """Put pg_hba.conf aside and let only this machine's users in."""
        hba = self._file("pg_hba.conf")
        self._file("pg_hba.conf.original").write(hba.read())
        hba.write(_TRUSTED_LOCALLY)
        self.notes.append(f"pg_hba.conf is kept as pg_hba.conf.original and replaced, because {why}")

    def _complete_files(self) -> None:
        """Write what Debian, for one, keeps outside the data directory."""
        missing = []
        for name, content in (
            (MAIN, "# written by pitr restore: the base backup held no postgresql.conf\n"),
            ("pg_hba.conf", _TRUSTED_LOCALLY),
            ("pg_ident.conf", ""),
        ):
            file = self._file(name)
            if not file.path.exists():
                file.write(content)
                missing.append(name)
        if missing:
            self.notes.append(
                f"the base backup holds no {' nor '.join(missing)}, because the source keeps that out of its "
                "data directory; the restored server runs with a minimal configuration"
            )

    def _own_places(self) -> dict[str, str]:
        data_directory, run_directory = self.cluster.data_directory, self.destination.run
        sockets = ""
        if fits_a_socket(run_directory, self.destination.port):
            quoted = str(run_directory).replace('"', '""')
            sockets = f'"{quoted}"'
        else:
            self.notes.append(f"no Unix socket: the path {run_directory} is too long for one")
        return {
            # A data_directory in the file would beat -D, and start the original.
            "data_directory": str(data_directory),
            "hba_file": str(data_directory / "pg_hba.conf"),
            "ident_file": str(data_directory / "pg_ident.conf"),
            "port": str(self.destination.port),
            "unix_socket_directories": sockets,
            "cluster_name": f"{self.database} restored",
        }

    def _drop_overridden(self, name: str) -> None:
        self._file(name).disable(lambda setting, _: setting in self.overrides, "a restored copy differs here")

    def _apply(self) -> None:
        """Write the overrides behind everything else: the last line that sets something counts."""
        self._drop_overridden(AUTO)
        self._main.write(
            self._original.rstrip("\n") + f"\n\n{_BLOCK} beats what is above, and makes this copy harmless.\n"
            "# To put the copy into service, go through these lines and delete what is not wanted.\n"
            + format_settings(self.overrides)
        )

    def _make_readable(self) -> None:
        """Take out of force what PostgreSQL refuses, one complaint after the other."""
        for _ in range(_ATTEMPTS):
            try:
                self._ask("fsync")
                return
            except _Refused as refused:
                if not self._disable_refused(str(refused)):
                    break
        self._start_afresh()

    def _disable_refused(self, said: str) -> bool:
        names = {name.lower() for name in _BAD_SETTING.findall(said)}
        disabled: list[str] = []
        files = list(all_files(self.cluster.data_directory, self.cluster.account))
        for file in files:
            found = file.disable(lambda name, _: name in names - self.overrides.keys(), "refused here")
            disabled += found
        if not disabled:
            for path, number in _BAD_LINE.findall(said):
                for file in files:
                    if str(file.path) == path:
                        file.disable_line(int(number), "refused here")
                        disabled.append(f"line {number} of {path}")
        if disabled:
            reason = " ".join(said.split("\n")[0].split())
            self.notes += [f"left out of the configuration: {line} ({reason})" for line in disabled]
            self._original = self._main.read().rpartition(f"\n\n{_BLOCK}")[0] + "\n"
        return bool(disabled)

    def _start_afresh(self) -> None:
        for name in (MAIN, AUTO):
            self._file(f"{name}.original").write(self._file(name).read())
            self._file(name).write("")
        self._original = (
            f"# written by pitr restore: see {MAIN}.original for the configuration of the source\n"
        )
        self._apply()
        try:
            self._ask("fsync")
        except _Refused as refused:
            raise RecoveryFailed(
                f"PostgreSQL {self.cluster.binaries.version} does not accept any configuration for "
                f"{self.cluster.data_directory}: {refused}",
                remedy="Correct what it names, then restore again.",
            ) from None
        self.notes.append(
            f"the configuration of the source does not work here; it is kept as {MAIN}.original, and the "
            "restored server runs with PostgreSQL's defaults"
        )

    def _adapt_libraries(self) -> None:
        self._apply()
        for setting in ("shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"):
            wanted = _split(self._ask(setting))
            left_out = {name: self._problem_loading(name) for name in wanted}
            kept = [name for name in wanted if left_out[name] is None]
            if kept != wanted:
                self.overrides[setting] = ",".join(f'"{name}"' for name in kept)
                self.notes += [
                    f"{setting} is without {name}: {why}" for name, why in left_out.items() if why is not None
                ]
            if setting == "shared_preload_libraries" and "timescaledb" in kept:
                self.overrides["timescaledb.max_background_workers"] = "0"
                self.notes.append("TimescaleDB's jobs are off, so that they delete nothing here")
        self._apply()
        try:
            self._ask(_COMPUTED)
        except _Refused as refused:
            self.overrides["shared_preload_libraries"] = ""
            self.notes.append(f"shared_preload_libraries is empty, because they do not load here: {refused}")

    def _problem_loading(self, library: str) -> str | None:
        if Path(library).name in _JOB_RUNNERS:
            return "it runs jobs, which a restored copy should not do by itself"
        try:
            self._ask(_COMPUTED, "-c", f'shared_preload_libraries="{library}"')
        except _Refused as refused:
            if "could not access file" in str(refused) or "could not load library" in str(refused):
                return str(refused).partition("\n")[0]
        return None

    def _adapt_memory(self, block_size: int) -> None:
        wanted = int(self._ask("shared_buffers")) * block_size
        available = available_memory()
        if wanted > available // 2:
            given = max(available // 4, 16 * 1024**2)
            self.overrides["shared_buffers"] = f"{given // 1024}kB"
            self.notes.append(
                f"shared_buffers is {show_bytes(given)} instead of the source's {show_bytes(wanted)}, "
                f"because {show_bytes(available)} of memory are available here"
            )
        if self._ask("huge_pages") == "on":
            self.overrides["huge_pages"] = "try"

    def _adapt_ssl(self) -> None:
        if self._ask("ssl") != "on":
            return
        try:
            # Asked for something that is computed, PostgreSQL does all that it does at a start.
            self._ask(_COMPUTED, "-c", "shared_preload_libraries=")
        except _Refused as refused:
            self.overrides["ssl"] = "off"
            self.notes.append(f"ssl is off: {refused}")

    def _check_fsync(self) -> None:
        if self._ask("fsync") != "on":
            raise RecoveryFailed(
                f"fsync cannot be turned on in {self.cluster.data_directory}",
                remedy="Look for a setting that beats the end of its postgresql.conf, and report it.",
            )

    def _ask(self, setting: str, *options: str) -> str:
        """Ask PostgreSQL itself what a setting is, as the files are now. Raises _Refused."""
        argv: Sequence[str | Path] = [
            self.cluster.binaries.program("postgres"),
            "-D",
            self.cluster.data_directory,
            *options,
            "-C",
            setting,
        ]
        done = run(self.cluster.account, argv)
        if done.returncode != 0:
            lines = re.findall(r"(?:LOG|ERROR|FATAL):\s+(.*)", done.stderr) or [done.stderr.strip()]
            raise _Refused("\n".join(lines))
        return done.stdout.strip()


def _split(libraries: str) -> list[str]:
    names = (name.strip().strip('"') for name in libraries.split(","))
    return [name for name in names if name]
