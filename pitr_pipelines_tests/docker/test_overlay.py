"""The compose file over an application that had its databases before: they lose nothing, and get backups."""

from __future__ import annotations

from pitr_pipelines_tests.docker.stack import APPLICATION_FILE, Stack, this_hour, today


def test_an_application_that_gets_backups_keeps_its_data_its_password_and_its_network(overlay: Stack) -> None:
    for service in ("order-db", "inventory-db"):
        assert overlay.psql(service, "SELECT count(*) FROM orders", dbname="shop") == "20000"
        assert overlay.psql(service, "SHOW archive_mode") == "on"
    shop = overlay.container("shop")["Id"]
    address = "postgresql://postgres:shop@order-db/shop"
    said = overlay.engine.docker("exec", shop, "psql", "-Atc", "SELECT count(*) FROM orders", address)
    assert said.strip() == "20000"


def test_the_applications_databases_are_backed_up_and_bundled(overlay: Stack) -> None:
    based = overlay.run("daily_base_backups", today())
    bundled = overlay.run("hourly_bundles", this_hour())

    for name in ("order_db", "inventory_db"):
        assert based.of(f"{name}/base_backup") is not None
        assert bundled.of(f"{name}/wal_bundle") is not None
    assert "FAILED" not in overlay.pitr("check")


def test_without_a_word_on_image_and_data_nothing_starts(overlay: Stack) -> None:
    kept = (overlay.place / ".env").read_text()
    try:
        (overlay.place / ".env").write_text(
            "".join(line for line in kept.splitlines(True) if "ORDER_DB_DATA" not in line)
        )
        said = ""
        try:
            overlay.compose("config", "--quiet")
        except AssertionError as error:
            said = str(error)
        assert "say in .env which volume holds the data of order-db" in said
    finally:
        (overlay.place / ".env").write_text(kept)
    assert APPLICATION_FILE.is_file()
