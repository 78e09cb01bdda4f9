"""A restored cluster starts here, whatever its source was told, and harms nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pitr_pipelines.postgres.account import Account, make_owned_directory
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.restore import configure, memory
from pitr_pipelines.restore.conf_file import ConfFile, confine_includes, format_settings, parse_line
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.units import show_bytes
from pitr_pipelines_tests.restore.scenes import show
from pitr_pipelines_tests.servers import Templates, each_major


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("port = 5432", ("port", "5432")),
        ("  Archive_Command='cp \"%p\" ''x'' \\'y'  # why", ("archive_command", "cp \"%p\" 'x' 'y")),
        ("shared_buffers 64GB", ("shared_buffers", "64GB")),
        ("include_dir = 'conf.d'", ("include_dir", "conf.d")),
        ("cron.database_name='x'", ("cron.database_name", "x")),
        ("log_line_prefix = ''", ("log_line_prefix", "")),
        ("# port = 1", None),
        ("", None),
        ("\t", None),
    ],
)
def test_a_line_is_read_as_postgresql_reads_it(line: str, expected: tuple[str, str] | None) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize("value", ["it's", "back\\slash", "100%", '"quoted"', "", "# not a comment", "ünï"])
def test_what_is_written_reads_back(value: str) -> None:
    assert parse_line(format_settings({"a": value}).rstrip("\n")) == ("a", value)
    with pytest.raises(ValueError, match="line break"):
        format_settings({"a": "1\nfsync = off"})


@pytest.fixture
def conf(tmp_path: Path, account: Account) -> Callable[[str, str], ConfFile]:
    def make(name: str, text: str) -> ConfFile:
        file = ConfFile(tmp_path / "data" / name, account)
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.write(text)
        return file

    return make


def test_only_files_inside_are_included(
    conf: Callable[[str, str], ConfFile], tmp_path: Path, account: Account
) -> None:
    (tmp_path / "outside.conf").write_text("port = 1\n")
    conf("conf.d/inner.conf", "include '../../outside.conf'\nwork_mem = '1MB'\n")
    main = conf(
        "postgresql.conf",
        "include_dir 'conf.d'\ninclude = 'missing.conf'\n"
        f"include_if_exists '{tmp_path}/outside.conf'\nport = 2\n",
    )
    disabled = confine_includes(main.path, tmp_path / "data", account)
    assert len(disabled) == 3
    assert main.read().startswith("include_dir 'conf.d'\n# pitr restore: ")
    assert main.read().endswith("\nport = 2\n")
    inner = ConfFile(tmp_path / "data" / "conf.d" / "inner.conf", account)
    assert parse_line(inner.read().splitlines()[0]) is None
    assert inner.read().endswith("work_mem = '1MB'\n")


def test_a_configuration_file_is_never_written_through_a_link(tmp_path: Path, account: Account) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "postgresql.conf").symlink_to("elsewhere")
    ConfFile(tmp_path / "postgresql.conf", account).write("port = 1\n")
    assert (tmp_path / "elsewhere").read_text() == "precious"


class Restored:
    """A cluster as it lies there after unpacking: not yet configured for here."""

    def __init__(self, directory: Path, templates: Templates, account: Account) -> None:
        self.directory = directory
        self.account = account
        self._templates = templates
        self.configuration: Configuration
        self.cluster: Cluster

    def make(self, lines: str = "", *, auto: str = "", major: int | None = None) -> None:
        self.cluster = self._templates.copy(self.directory / "data", major, 16)
        data = self.cluster.data_directory
        with (data / "postgresql.conf").open("a") as file:
            file.write("shared_buffers = 16MB\n" + lines)
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write(auto)
        make_owned_directory(self.directory / "run", self.account)
        destination = Destination(self.directory, free_port(), True)
        self.configuration = Configuration(self.cluster, destination, "order-db")

    def adapt(self) -> list[str]:
        self.configuration.adapt(self.cluster.control_data())
        return self.configuration.notes

    def connect(self) -> psycopg.Connection[Any]:
        """Start it as it is configured, and connect."""
        destination = self.configuration.destination
        self.cluster.start(log_file=self.directory / "server.log")
        return psycopg.connect(
            host="127.0.0.1", port=destination.port, user="postgres", dbname="postgres", autocommit=True
        )


@pytest.fixture
def restored(reachable_tmp: Path, templates: Templates, account: Account) -> Iterator[Restored]:
    made = Restored(reachable_tmp, templates, account)
    yield made
    made.cluster.stop("immediate")


@each_major
def test_nothing_of_the_source_is_reached(restored: Restored, reachable_tmp: Path, major: int) -> None:
    touched = reachable_tmp / "touched"
    lines = f"""
        archive_mode = on
        archive_command = 'touch {touched}'
        archive_cleanup_command = 'touch {touched}'
        recovery_end_command = 'touch {touched}'
        restore_command = 'touch {touched}; false'
        recovery_target_name = 'old'
        primary_conninfo = 'host=production'
        synchronous_standby_names = '*'
        listen_addresses = '*'
        port = 5432
        data_directory = '/var/lib/postgresql/15/main'
        hba_file = '/etc/postgresql/15/main/pg_hba.conf'
        ident_file = '/etc/postgresql/15/main/pg_ident.conf'
        external_pid_file = '{touched}'
        unix_socket_directories = '/var/run/postgresql'
        unix_socket_group = 'nosuchgroup'
        logging_collector = on
        log_destination = 'csvlog,syslog'
        log_directory = '/nowhere'
        cluster_name = 'production'
        fsync = off
    """
    restored.make(
        lines, auto=f"archive_command = 'touch {touched}'\nport = '5433'\nwork_mem = '5MB'\n", major=major
    )
    assert restored.adapt() == []
    with restored.connect() as connection:
        assert show(connection, "archive_mode") == "off"
        for setting in (
            "archive_command",
            "primary_conninfo",
            "synchronous_standby_names",
            "restore_command",
        ):
            # archive_command is shown as (disabled) while archive_mode is off
            assert show(connection, setting) in ("", "(disabled)")
        assert show(connection, "data_directory") == str(restored.cluster.data_directory)
        assert show(connection, "listen_addresses") == "127.0.0.1"
        assert show(connection, "max_logical_replication_workers") == "0"
        assert show(connection, "fsync") == "on"
        assert show(connection, "cluster_name") == "order-db restored"
        assert show(connection, "work_mem") == "5MB"  # what does no harm stays
        connection.execute("CREATE TABLE committed_without_waiting_for_standbys ()")
        connection.execute("SELECT pg_switch_wal()")
    restored.cluster.stop()
    assert not touched.exists()
    assert "could not" not in (reachable_tmp / "server.log").read_text()


def test_capacities_are_those_the_source_really_had(restored: Restored) -> None:
    restored.make("max_connections = 20\n")
    # The control file holds initdb's 100: as if the source had been started with -c max_connections=100.
    restored.adapt()
    assert restored.configuration.overrides["max_connections"] == "100"


@each_major
def test_what_this_machine_refuses_is_left_out_and_noted(restored: Restored, major: int) -> None:
    lines = """
        lc_messages = 'xx_XX.UTF-8'
        vendor_setting = 'only in their build'
        wal_sync_method = nosuchmethod
        include 'gone.conf'
        this is no setting at all
        work_mem = '6MB'
    """
    restored.make(lines, auto="another_vendor_setting = 1\n", major=major)
    notes = "\n".join(restored.adapt())
    with restored.connect() as connection:
        assert show(connection, "work_mem") == "6MB"
    for words in ("lc_messages", "vendor_setting", "another_vendor_setting", "wal_sync_method", "gone.conf"):
        assert words in notes


def test_a_missing_library_does_not_keep_the_data_away(restored: Restored) -> None:
    restored.make(
        "shared_preload_libraries = 'pg_stat_statements, nosuchlib'\nsession_preload_libraries = 'gone'\n"
    )
    notes = restored.adapt()
    assert len(notes) == 2
    assert notes[0].startswith(
        'shared_preload_libraries is without nosuchlib: could not access file "nosuchlib"'
    )
    with restored.connect() as connection:
        assert show(connection, "shared_preload_libraries") == '"pg_stat_statements"'
        assert show(connection, "session_preload_libraries") == ""


def test_libraries_that_run_jobs_are_left_out(restored: Restored) -> None:
    restored.make("shared_preload_libraries = 'pg_cron'\ncron.database_name = 'postgres'\n")
    (note,) = restored.adapt()
    assert note.startswith("shared_preload_libraries is without pg_cron: it runs jobs")
    restored.connect().close()


def test_a_cluster_configured_elsewhere_gets_a_configuration(restored: Restored) -> None:
    """Debian keeps postgresql.conf, pg_hba.conf and pg_ident.conf in /etc."""
    restored.make()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (restored.cluster.data_directory / name).unlink()
    notes = restored.adapt()
    assert [note.split(",")[0] for note in notes] == [
        "the base backup holds no postgresql.conf nor pg_hba.conf nor pg_ident.conf",
    ]
    restored.cluster.start(log_file=restored.directory / "server.log")
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(
            host="127.0.0.1", port=restored.configuration.destination.port, user="postgres", dbname="postgres"
        )


def test_memory_that_is_not_here_is_not_asked_for(
    restored: Restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configure, "available_memory", lambda: 256 * 1024**2)
    restored.make("shared_buffers = '64GB'\nhuge_pages = on\n")
    (note,) = restored.adapt()
    assert f"the source's {show_bytes(64 * 1024**3)}" in note
    with restored.connect() as connection:
        assert show(connection, "shared_buffers") == "64MB"
        assert show(connection, "huge_pages") == "try"


@each_major
def test_ssl_is_on_only_with_its_files(restored: Restored, major: int) -> None:
    restored.make("ssl = on\nssl_cert_file = '/etc/ssl/nowhere.pem'\n", major=major)
    (note,) = restored.adapt()
    assert note.startswith('ssl is off: could not load server certificate file "/etc/ssl/nowhere.pem"')
    restored.connect().close()


def test_a_hopeless_configuration_is_kept_aside(restored: Restored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configure, "_ATTEMPTS", 0)
    restored.make("vendor_setting = 1\n")
    notes = restored.adapt()
    assert "kept as postgresql.conf.original" in notes[-1]
    data = restored.cluster.data_directory
    assert "vendor_setting = 1" in (data / "postgresql.conf.original").read_text()
    restored.connect().close()


def test_a_long_path_leaves_out_the_socket(
    reachable_tmp: Path, templates: Templates, account: Account
) -> None:
    deep = make_owned_directory(reachable_tmp / ("d" * 100), account, mode=0o755)
    made = Restored(deep, templates, account)
    made.make()
    try:
        (note,) = made.adapt()
        assert "too long" in note
        with made.connect() as connection:
            assert show(connection, "unix_socket_directories") == ""
    finally:
        made.cluster.stop("immediate")


def test_available_memory_is_some() -> None:
    assert 16 * 1024**2 < memory.available_memory() < 2**50


def test_what_holds_it_in_recovery_is_undone_without_a_trace(
    conf: Callable[[str, str], ConfFile], tmp_path: Path, account: Account
) -> None:
    main = conf("postgresql.conf", "work_mem = '1MB' # mine\n")
    conf("postgresql.auto.conf", "")
    cluster = Cluster(main.path.parent, Binaries(tmp_path, 15, "15.0"), account)
    destination = Destination(tmp_path, 5433, keep_running=True)
    configuration = Configuration(cluster, destination, "order-db")
    configuration._original = main.read()
    configuration.add({"port": "5433", "cluster_name": 'it\'s \\ "here"', "max_connections": "10"})
    before = main.read()

    configuration.hold_in_recovery(3, {"max_connections setting": "10"})
    held = dict(filter(None, map(parse_line, main.read().splitlines())))
    again = Configuration.reopen(cluster, destination, "order-db")
    again.release()

    assert held["hot_standby"] == "on"
    assert held["recovery_target_timeline"] == "3"
    assert main.read() == before
    configuration.hold_in_recovery(3, {"max_connections setting": "400"})
    assert Configuration.reopen(cluster, destination, "order-db").overrides["max_connections"] == "400"
