"""What an asset's page in Dagster says besides: who owns it, where to read on, and which code makes it.

Owners and addresses are the settings'. Without an address the page of the docs is named, and the code is
referred to as the file where Dagster runs. Dagster's own `with_source_code_references` knows no external
assets, and reads the same source files again for every database.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dagster as dg

import pitr_pipelines
from pitr_pipelines.defs.base_backup import build_base_backup
from pitr_pipelines.defs.external import wal_archive
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    OFFSITE_COPY,
    RESTORE_POINTS,
    RESTORED_CLUSTER,
    WAL_ARCHIVE,
    WAL_BUNDLE,
)
from pitr_pipelines.defs.offsite_copy import build_offsite
from pitr_pipelines.defs.restore_drill import RESTORE_DRILL, build_restore_drill
from pitr_pipelines.defs.restore_job import build_restore_job
from pitr_pipelines.defs.restore_points import build_restore_points
from pitr_pipelines.defs.wal_bundle import build_wal_bundle
from pitr_pipelines.settings import Settings, asset_name

Asset = dg.AssetsDefinition | dg.AssetSpec

_ROOT = Path(pitr_pipelines.__file__).parents[1]

_MADE_BY: dict[str, Callable[..., Any]] = {
    WAL_ARCHIVE: wal_archive,
    BASE_BACKUP: build_base_backup,
    WAL_BUNDLE: build_wal_bundle,
    RESTORED_CLUSTER: build_restore_job,
    RESTORE_DRILL: build_restore_drill,
    RESTORE_POINTS.path[-1]: build_restore_points,
    OFFSITE_COPY.path[-1]: build_offsite,
}
_READ_ON = {
    WAL_ARCHIVE: "operate.md",
    BASE_BACKUP: "concepts.md",
    WAL_BUNDLE: "concepts.md",
    RESTORED_CLUSTER: "restore.md",
    RESTORE_DRILL: "operate.md",
    RESTORE_POINTS.path[-1]: "concepts.md",
    OFFSITE_COPY.path[-1]: "offsite.md",
}


def with_signposts(settings: Settings, assets: Iterable[Asset]) -> list[Asset]:
    """Return the assets, each with its owners, a link to the docs and a reference to the code."""
    owners_of = {asset_name(name): settings.owners_of(name) for name in settings.databases}
    references = {name: _reference(settings, made_by) for name, made_by in _MADE_BY.items()}

    def signposted(spec: dg.AssetSpec) -> dg.AssetSpec:
        kind = spec.key.path[-1]
        group = spec.key.path[0]
        return spec.replace_attributes(
            owners=owners_of.get(group, settings.dagster.owners),
            description=f"{spec.description}\n\n{_read_on(settings, _READ_ON[kind])}",
            metadata={**spec.metadata, "dagster/code_references": references[kind]},
        )

    return [
        asset.map_asset_specs(signposted) if isinstance(asset, dg.AssetsDefinition) else signposted(asset)
        for asset in assets
    ]


def _read_on(settings: Settings, page: str) -> str:
    if settings.dagster.docs_url is None:
        return f"More in `docs/{page}`."
    return f"More in [docs/{page}]({settings.dagster.docs_url}/{page})."


def _reference(settings: Settings, made_by: Callable[..., Any]) -> dg.CodeReferencesMetadataValue:
    code = made_by.__code__
    path, line, base = Path(code.co_filename), code.co_firstlineno, settings.dagster.code_url
    reference: dg.LocalFileCodeReference | dg.UrlCodeReference
    if base is None:
        reference = dg.LocalFileCodeReference(file_path=str(path), line_number=line)
    else:
        place = path.relative_to(_ROOT).as_posix()
        reference = dg.UrlCodeReference(url=f"{base}/{place}#L{line}", label=place)
    return dg.CodeReferencesMetadataValue(code_references=[reference])
