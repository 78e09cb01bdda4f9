"""How a run works on several databases: in processes of its own, or in a pod for each.

Only base backups are worth a pod: one of a large database takes hours, and much of a machine. A bundle takes
less time than a pod to start, and one run makes those of all databases side by side.
"""

import dagster as dg

from pitr_pipelines.errors import SettingsError
from pitr_pipelines.settings import Settings

BASES_AT_ONCE = 2
"""Base backups that one run takes at the same time. Each is a process, so that a database which
hangs does not hold up the others; two leave a small machine able to work."""
PODS_AT_ONCE = 4
"""Likewise, where each is a pod: they need not share a machine, but they do share the storage."""


def base_backup_executor(settings: Settings) -> dg.ExecutorDefinition:
    """Return what runs the steps of the job that takes all base backups.

    Raises SettingsError if the settings ask for pods and dagster-k8s is not installed.
    """
    if settings.dagster.executor == "processes":
        return dg.multiprocess_executor.configured({"max_concurrent": BASES_AT_ONCE})
    try:
        # Only where it is asked for: it brings a client of Kubernetes.
        from dagster_k8s import k8s_job_executor
    except ImportError:
        raise SettingsError(
            "dagster.executor: k8s needs the package dagster-k8s, which is not installed here",
            remedy="Install requirements/kubernetes.txt into the image (docs/kubernetes/README.md), or take "
            "the setting out: then a run takes the base backups in processes of its own.",
        ) from None
    # Without retries: what is missing is asked for again by who looks at the storage. With the run's pod go
    # its steps' pods, so that none works on without anybody who records it.
    return k8s_job_executor.configured(
        {"max_concurrent": PODS_AT_ONCE, "retries": {"disabled": {}}, "enable_owner_references": True}
    )
