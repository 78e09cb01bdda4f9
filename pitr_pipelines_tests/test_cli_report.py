"""`pitr report` and `pitr metrics`, as somebody at a terminal or a timer runs them, without any server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pitr_pipelines_tests.html_pages import parse_page

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    file = tmp_path / "pitr.yaml"
    (tmp_path / "backup").mkdir()
    values = {
        "backup_root": "backup",
        "restore_root": "restore",
        "databases": {
            "order-db": {"dsn": "host=nowhere.invalid"},
            "other-db": {"dsn": "host=nowhere.invalid"},
        },
        "offsite": {"store": {"bucket": "backups"}, "unencrypted": True},
    }
    file.write_text(yaml.safe_dump(values))
    return file


def pitr(settings_file: Path, *words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = (
        f"from pitr_pipelines.cli import main; main(prog_name='pitr', standalone_mode={not code})\n{code}"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PITR_CONFIG": str(settings_file), "PYTHONPATH": str(REPOSITORY)},
        cwd=settings_file.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_report_goes_beside_the_manifest_and_its_address_is_printed(settings_file: Path) -> None:
    done = pitr(settings_file, "report")
    assert done.returncode == 0, done.stderr
    file = Path(unquote(urlsplit(done.stdout.strip()).path))
    assert file == settings_file.parent / "backup" / "manifests" / "report.html"
    document = parse_page(file.read_text())
    assert "Nothing of order-db can be restored: there is no base backup" in document.text
    assert "no call yet" in document.text


def test_the_report_goes_where_it_is_wanted(settings_file: Path) -> None:
    done = pitr(settings_file, "report", "--output", "mine.html", "--days", "2")
    assert done.returncode == 0, done.stderr
    assert (settings_file.parent / "mine.html").exists()
    assert not (settings_file.parent / "backup" / "manifests").exists()
    done = pitr(settings_file, "report", "--output", "nowhere/mine.html")
    assert done.returncode == 2
    assert "no directory" in done.stderr
    assert pitr(settings_file, "report", "--days", "0").returncode == 2


def test_metrics_go_to_standard_output(settings_file: Path) -> None:
    done = pitr(settings_file, "metrics")
    assert (done.returncode, done.stderr) == (0, "")
    names = {family.name for family in text_string_to_metric_families(done.stdout)}
    assert {"pitr_build_info", "pitr_problems", "pitr_offsite_today"} <= names


def test_metrics_are_left_for_a_node_exporter_of_another_user(settings_file: Path) -> None:
    file = settings_file.parent / "textfile" / "pitr.prom"
    done = pitr(settings_file, "metrics", "--output", str(file))
    assert done.returncode == 2
    assert "no directory" in done.stderr
    file.parent.mkdir()
    for _ in range(2):
        done = pitr(settings_file, "metrics", "--output", str(file))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.parent.iterdir()] == ["pitr.prom"]
    assert list(text_string_to_metric_families(file.read_text()))


def test_metrics_say_that_the_storage_is_gone_instead_of_failing(settings_file: Path) -> None:
    (settings_file.parent / "backup").rmdir()
    done = pitr(settings_file, "metrics")
    assert done.returncode == 0, done.stderr
    assert "\npitr_storage_available 0.0\n" in done.stdout
    assert pitr(settings_file, "report").returncode == 2


@pytest.mark.parametrize(
    ("words", "allowed"),
    [(["report"], set()), (["metrics"], {"prometheus_client"})],
    ids=["report", "metrics"],
)
def test_they_load_nothing_that_is_slow_to_load(
    settings_file: Path, words: list[str], allowed: set[str]
) -> None:
    slow = "{'dagster', 'psycopg', 'pandas', 'numpy', 'boto3', 'botocore', 'prometheus_client'}"
    done = pitr(settings_file, *words, code=f"import sys; print(sorted({slow} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(sorted(allowed))
