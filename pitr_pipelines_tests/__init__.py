"""Tests of pitr_pipelines; the directories mirror the package."""
