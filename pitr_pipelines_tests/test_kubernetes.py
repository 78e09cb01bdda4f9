"""The files in docs/kubernetes/ are what Kubernetes, Dagster and pitr take, and fit together.

Every object is checked strictly against Kubernetes' own schemas. Dagster makes the pods of runs from the
chart's values and from the code location's: they are made here as it makes them, and checked alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes.client import ApiClient

import pitr_pipelines
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.postgres.prepare import expected_archive_command
from pitr_pipelines.settings import Settings, load_settings

ROOT = Path(pitr_pipelines.__file__).parent.parent
PLACE = ROOT / "docs" / "kubernetes"
VERSIONS = ["1.29", "1.33", "1.37"]
MANIFESTS = sorted(path for path in PLACE.glob("*.yaml") if path.stem not in ("values", "pitr"))
USER = 10001
HOME = "/opt/dagster/dagster_home"


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def objects(kind: str) -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from (found for found in documents(path) if found["kind"] == kind)


def values() -> dict[str, Any]:
    (found,) = documents(PLACE / "values.yaml")
    return found


def code_location() -> dict[str, Any]:
    (found,) = values()["dagster-user-deployments"]["deployments"]
    assert isinstance(found, dict)
    return found


def settings() -> Settings:
    return load_settings(PLACE / "pitr.yaml")


def deployment(name: str, part: dict[str, Any]) -> dict[str, Any]:
    """Return the Deployment that the chart makes of one of its parts, as far as our values go into it."""
    labels = {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/instance": "dagster", "component": name}
    image = part["image"]
    container = {
        "name": "dagster",
        "image": f"{image['repository']}:{image['tag']}",
        "imagePullPolicy": image["pullPolicy"],
        "securityContext": part["securityContext"],
        "resources": part["resources"],
        "volumeMounts": part["volumeMounts"],
        "env": part.get("env", []),
    }
    pod = {
        "securityContext": part["podSecurityContext"],
        "containers": [container],
        "volumes": part["volumes"],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"dagster-{name}"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def launcher_config() -> dict[str, Any]:
    """Return the run launcher's configuration in dagster.yaml that the chart writes for our values."""
    given = values()["runLauncher"]["config"]["k8sRunLauncher"]
    extra = given["runK8sConfig"]
    return {
        "load_incluster_config": given["loadInclusterConfig"],
        "image_pull_policy": given["imagePullPolicy"],
        "job_namespace": "pitr",
        "service_account_name": "dagster",
        "dagster_home": HOME,
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": "dagster-postgresql-secret",
        "security_context": given["securityContext"],
        "run_k8s_config": {
            "pod_spec_config": extra["podSpecConfig"],
            "job_spec_config": extra["jobSpecConfig"],
        },
    }


def run_job(component: str = "run_worker") -> dict[str, Any]:
    """Return the Job that Dagster makes for a run, or for one step of it."""
    config, here = launcher_config(), code_location()
    of_launcher = K8sContainerContext(
        image_pull_policy=config["image_pull_policy"],
        service_account_name=config["service_account_name"],
        namespace=config["job_namespace"],
        security_context=config["security_context"],
        run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config["run_k8s_config"]),  # type: ignore[no-untyped-call]
    )
    # What the chart hands on of a code location: neither of its security contexts is in it.
    of_code = K8sContainerContext.create_from_config(
        {
            "k8s": {
                "image_pull_policy": here["image"]["pullPolicy"],
                "volume_mounts": here["volumeMounts"],
                "volumes": here["volumes"],
                "resources": here["resources"],
                "env": here["env"],
                "namespace": "pitr",
                "service_account_name": "dagster-user-deployments",
            }
        }
    )
    context = of_launcher.merge(of_code)
    job_config = DagsterK8sJobConfig(
        job_image="registry.example.com/pitr-pipelines:1.0.0",
        dagster_home=HOME,
        instance_config_map=config["instance_config_map"],
        postgres_password_secret=config["postgres_password_secret"],
    )
    job = construct_dagster_k8s_job(
        job_config=job_config,
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run-1",
        component=component,
        user_defined_k8s_config=context.run_k8s_config,
        labels={"dagster/job": "daily_base_backups"},
    )
    found = ApiClient().sanitize_for_serialization(job)
    assert isinstance(found, dict)
    return found


def pods() -> dict[str, dict[str, Any]]:
    """Return the spec of every pod here, by what it is."""
    found = {
        f"{one['kind']} {one['metadata']['name']}": one["spec"]["template"]["spec"]
        for kind in ("Job", "StatefulSet")
        for one in objects(kind)
    }
    for name, part in (
        ("dagster-webserver", values()["dagsterWebserver"]),
        ("dagster-daemon", values()["dagsterDaemon"]),
        ("user-deployments", code_location()),
    ):
        found[name] = deployment(name, part)["spec"]["template"]["spec"]
    return found | {"run": run_job()["spec"]["template"]["spec"]}


def claims(pod: dict[str, Any]) -> dict[str, str]:
    """Return which volume claim a pod's container has at which path."""
    named = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod.get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    mounts = pod["containers"][0]["volumeMounts"]
    return {mount["mountPath"]: named[mount["name"]] for mount in mounts if mount["name"] in named}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Tell whether a label selector fits, as Kubernetes does."""
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])
    )


def policies_of(labels: dict[str, str], direction: str) -> list[dict[str, Any]]:
    return [
        one["spec"]
        for one in objects("NetworkPolicy")
        if direction in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], labels)
    ]


def may_reach(client: dict[str, str], server: dict[str, str], port: int) -> bool:
    """Tell whether the policies let one pod reach another: both sides must allow it."""

    def allowed(specs: list[dict[str, Any]], side: str, peer: str, other: dict[str, str]) -> bool:
        rules = [rule for spec in specs for rule in spec.get(side, [])]
        return not specs or any(
            any(selects(entry.get("podSelector", {"matchLabels": {"": ""}}), other) for entry in rule[peer])
            and any(entry["port"] == port for entry in rule["ports"])
            for rule in rules
            if peer in rule
        )

    return allowed(policies_of(client, "Egress"), "egress", "to", server) and allowed(
        policies_of(server, "Ingress"), "ingress", "from", client
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_valid_by_kubernetes_own_schema(path: Path, version: str) -> None:
    found = documents(path)
    assert found
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_dagster_and_its_chart_make_of_the_values_is_valid(version: str) -> None:
    parts = {"dagster-webserver": values()["dagsterWebserver"], "dagster-daemon": values()["dagsterDaemon"]}
    for name, part in (parts | {"user-deployments": code_location()}).items():
        kubernetes_validate.validate(deployment(name, part), version, strict=True)
    for component in ("run_worker", "step_worker"):
        kubernetes_validate.validate(run_job(component), version, strict=True)


def test_a_mistake_would_be_found() -> None:
    (claim, *_) = documents(PLACE / "storage.yaml")
    claim["spec"]["acessModes"] = claim["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError, match="acessModes"):
        kubernetes_validate.validate(claim, VERSIONS[-1], strict=True)


def test_the_run_launcher_takes_its_configuration() -> None:
    schema = resolve_to_config_type(K8sRunLauncher.config_type())  # type: ignore[no-untyped-call]
    result = process_config(schema, launcher_config())
    assert result.success, result.errors


def test_the_settings_are_valid_and_dagster_loads_them_with_a_pod_for_each_base_backup() -> None:
    job = build_definitions(settings()).resolve_job_def("daily_base_backups")
    assert job.executor_def.name == "k8s"


def test_every_run_has_the_storage_the_settings_and_the_secrets_of_the_code_location() -> None:
    run, code = pods()["run"], pods()["user-deployments"]
    assert claims(run) == claims(code)
    found = settings()
    assert set(claims(run)) == {
        str(found.backup_root),
        str(found.restore_root),
        *(f"{found.backup_root}/wal/{name}" for name in found.databases),
    }
    mounts = {mount["mountPath"]: mount for mount in run["containers"][0]["volumeMounts"]}
    for database in found.databases.values():
        assert database.password_file is not None
        assert mounts[str(database.password_file.parent)]["readOnly"]
    environment = {one["name"]: one.get("value") for one in run["containers"][0]["env"]}
    assert Path(str(environment["PITR_CONFIG"])).parent == Path("/etc/pitr")
    assert Path(str(environment["AWS_SHARED_CREDENTIALS_FILE"])).parent == Path("/run/secrets/pitr")


def test_every_claim_that_is_mounted_exists_and_several_nodes_may_use_it() -> None:
    there = {one["metadata"]["name"]: one["spec"] for one in objects("PersistentVolumeClaim")}
    used = {claim for pod in pods().values() for claim in claims(pod).values()}
    assert used == set(there)
    assert all(spec["accessModes"] == ["ReadWriteMany"] for spec in there.values())


def test_a_server_reaches_its_own_archive_and_no_other() -> None:
    server = pods()["StatefulSet order-db"]
    assert claims(server) == {"/backup/wal/order-db": "pitr-wal-order-db"}
    assert USER in server["securityContext"]["supplementalGroups"]
    script = next(volume for volume in server["volumes"] if volume["name"] == "pitr-script")
    assert script["configMap"]["defaultMode"] == 0o555


def test_the_servers_archive_command_is_the_one_that_pitr_check_expects() -> None:
    (server,) = objects("StatefulSet")
    arguments = server["spec"]["template"]["spec"]["containers"][0]["args"]
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    assert given["archive_command"] == expected_archive_command("order-db", settings())
    assert given["archive_timeout"] == str(settings().database("order-db").archive_timeout_s)


@pytest.mark.parametrize("name", sorted(pods()))
def test_no_pod_can_become_more_than_it_is(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    if name == "Job pitr-prepare-volumes":  # the one that gives the volumes away
        assert context["runAsUser"] == 0
        return
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == (999 if "StatefulSet" in name else USER)
    assert "add" not in context["capabilities"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert "/tmp" in writable
    if not name.startswith("StatefulSet"):
        assert f"{HOME}/storage" in writable


def test_no_secret_is_in_a_variable_or_in_a_file_here() -> None:
    for name, pod in pods().items():
        for one in pod["containers"][0].get("env") or []:
            if name == "run" and one["name"] == "DAGSTER_PG_PASSWORD":
                continue  # the chart knows no other way to Dagster's own storage
            assert "valueFrom" not in one, (name, one)
            assert not re.search("password|secret|token", one.get("value", ""), re.I) or one[
                "value"
            ].startswith("/run/secrets/")
    assert list(objects("Secret")) == []
    modes = [v["secret"]["defaultMode"] for pod in pods().values() for v in pod["volumes"] if "secret" in v]
    assert set(modes) == {0o440}


def test_every_secret_and_configuration_that_is_mounted_is_made_by_a_command_of_the_page() -> None:
    page = (PLACE / "README.md").read_text()
    for pod in pods().values():
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert f"kubectl create secret generic {volume['secret']['secretName']}" in page
            name = volume.get("configMap", {}).get("name")
            if name is not None and name != "dagster-instance":
                assert f"kubectl create configmap {name}" in page


RUN = run_job()["spec"]["template"]["metadata"]["labels"]
STEP = run_job("step_worker")["spec"]["template"]["metadata"]["labels"]
CODE = {"app.kubernetes.io/instance": "dagster", "component": "user-deployments"}
WEB = {"app.kubernetes.io/instance": "dagster", "component": "dagster-webserver"}
DAEMON = {"app.kubernetes.io/instance": "dagster", "component": "dagster-daemon"}
STORAGE = {"app.kubernetes.io/instance": "dagster", "app.kubernetes.io/name": "postgresql"}
DATABASE = {"app.kubernetes.io/name": "order-db", "pitr/database": "true"}
PROXY = {"app.kubernetes.io/name": "oauth2-proxy"}
SOMEBODY = {"app.kubernetes.io/name": "something-else"}


def test_what_must_reach_the_databases_does_and_nothing_else() -> None:
    (server,) = objects("StatefulSet")
    assert server["spec"]["template"]["metadata"]["labels"] == DATABASE
    for client in (RUN, STEP, CODE):
        assert may_reach(client, DATABASE, 5432)
        assert may_reach(client, STORAGE, 5432)
    for client in (WEB, DAEMON, SOMEBODY, PROXY):
        assert not may_reach(client, DATABASE, 5432)
    assert may_reach({"order-db-client": "true"}, DATABASE, 5432)
    assert not may_reach(RUN, DATABASE, 22)


def test_the_ui_is_reached_through_the_proxy_alone_and_the_code_location_by_dagster_alone() -> None:
    assert may_reach(PROXY, WEB, values()["dagsterWebserver"]["service"]["port"])
    for client in (SOMEBODY, RUN, DATABASE):
        assert not may_reach(client, WEB, 3000)
    port = code_location()["port"]
    for client in (WEB, DAEMON):
        assert may_reach(client, CODE, port)
        assert may_reach(client, STORAGE, 5432)
    for client in (SOMEBODY, RUN, PROXY):
        assert not may_reach(client, CODE, port)
