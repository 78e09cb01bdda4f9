"""The compose file, read: its references lead somewhere, its services are as tight as promised.

docker-compose itself judges both ways of using it where it is installed (PITR_REQUIRE_COMPOSE=1 asks for it).
Without it, the file is held to this of the compose specification: services, volumes, networks, secrets and
dependencies that are named exist, conditions are known, and durations and variables have its form.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BACKUP = ROOT / "docker-compose.backup.yml"
APPLICATION = ROOT / "deploy" / "example-application.yml"
ONE_SHOT = {"prepare", "prepare-store"}
"""Root for a moment, with the capabilities that a change of owners takes."""

_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:?[-?])([^}]*))?\}")
_CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
ALONE = """\
ORDER_DB_IMAGE=postgres:17.10-bookworm
ORDER_DB_DATA=order-db-data:/var/lib/postgresql/data
INVENTORY_DB_IMAGE=postgres:17.10-bookworm
INVENTORY_DB_DATA=inventory-db-data:/var/lib/postgresql/data
DOCKER_GID=999
"""


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(BACKUP.read_text()))


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


@pytest.mark.parametrize("files", [(BACKUP,), (APPLICATION, BACKUP)], ids=["alone", "overlay"])
def test_docker_compose_takes_it(files: tuple[Path, ...], tmp_path: Path) -> None:
    program = shutil.which("docker-compose")
    if program is None:
        if os.environ.get("PITR_REQUIRE_COMPOSE") == "1":
            pytest.fail("docker-compose is not installed, and PITR_REQUIRE_COMPOSE=1 asks for it")
        pytest.skip("docker-compose is not installed")
    env = tmp_path / "env"
    text = ALONE
    if len(files) > 1:
        text = text.replace("order-db-data:", "orders:").replace("inventory-db-data:", "inventory:")
    env.write_text(text)
    chosen = [word for file in files for word in ("--file", str(file))]
    done = subprocess.run(
        [program, "--env-file", env, "--project-directory", ROOT, *chosen, "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_variable_is_explained_in_the_example_of_env() -> None:
    example = (ROOT / ".env.example").read_text()
    explained = dict(re.findall(r"^#?(\w+)=(.*)$", example, re.M))
    used = {name: default for name, kind, default in _VARIABLE.findall(BACKUP.read_text()) if kind != ":?"}
    assert {found[0] for found in _VARIABLE.findall(BACKUP.read_text())} <= set(explained)
    images = {name: default for name, default in used.items() if name.endswith("_IMAGE")}
    assert images
    assert {name: explained[name] for name in images} == images
    assert all(":" in image and not image.endswith(":latest") for image in images.values())


def test_what_services_name_exists() -> None:
    file = compose()
    for name, service in SERVICES.items():
        networks = set(service.get("networks", [])) - {"default"}
        assert networks <= set(file["networks"]), name
        assert set(service.get("secrets", [])) <= set(file["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            if not source.startswith(("$", ".", "/")):
                assert source in file["volumes"], name
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            assert how["condition"] in _CONDITIONS, name


def test_what_is_mounted_from_the_checkout_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                path = _VARIABLE.sub(lambda found: found[3] or ".", volume["source"])
                assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_hardened_limited_and_looked_after(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    user = str(service.get("user", "the image's"))
    if name in ONE_SHOT:
        assert service["network_mode"] == "none"
    else:
        assert not user.startswith("0")
        assert "cap_add" not in service
    if "healthcheck" in service and not service["healthcheck"].get("disable"):
        assert all(re.fullmatch(r"\d+[sm]", service["healthcheck"][key]) for key in ("interval", "timeout"))
    for variable, value in dict(service.get("environment") or {}).items():
        assert "PASSWORD" not in variable or variable.endswith("_FILE"), value
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_only_code_and_runs_and_the_servers_are_on_the_databases_network() -> None:
    on = {name for name, service in SERVICES.items() if "pitr-databases" in service.get("networks", [])}
    assert on == {"order-db", "inventory-db", "code", "pitr"}
    on = {name for name, service in SERVICES.items() if "pitr-docker" in service.get("networks", [])}
    assert on == {"docker-proxy", "daemon", "webserver"}
    assert all(
        compose()["networks"][name]["internal"] for name in ("pitr-databases", "pitr-docker", "pitr-dagster")
    )


def test_a_run_has_the_code_locations_volumes_networks_and_environment() -> None:
    file, launcher = compose(), yaml.safe_load((ROOT / "dagster.yaml").read_text())["run_launcher"]["config"]
    kwargs, code = launcher["container_kwargs"], SERVICES["code"]
    named = {key: value["name"] for key, value in file["volumes"].items() if value}
    mounted = [re.sub(r"^[\w-]+", lambda found: named[found[0]], volume) for volume in code["volumes"]]
    assert kwargs["volumes"] == mounted
    assert launcher["networks"] == [file["networks"][name]["name"] for name in code["networks"]]
    said = dict(variable.split("=", 1) for variable in launcher["env_vars"])
    assert said == {
        name: value for name, value in code["environment"].items() if name != "DAGSTER_CURRENT_IMAGE"
    }
    assert (kwargs["cap_drop"], kwargs["read_only"], kwargs["auto_remove"]) == (["ALL"], True, True)
    assert kwargs["security_opt"] == ["no-new-privileges:true"]


def test_the_containers_settings_are_valid_and_name_the_servers() -> None:
    from pitr_pipelines.settings import load_settings

    settings = load_settings(ROOT / "deploy" / "pitr.yaml")
    assert set(settings.databases) == {"order-db", "inventory-db"}
    assert settings.dagster.restored_servers == "stop"
