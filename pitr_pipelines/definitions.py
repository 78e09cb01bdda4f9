"""What Dagster loads. Reads pitr.yaml and nothing else: no server, no storage is touched."""

from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.settings import load_settings

defs = build_definitions(load_settings())
