"""The `pitr` command: everything Dagster does, without Dagster. A module for each subject, thin."""

from pitr_pipelines.cli.command import main

__all__ = ["main"]
