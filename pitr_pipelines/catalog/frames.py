"""The restore points as a table for data engineers: a pandas DataFrame of what the manifest offers.

pandas takes seconds to load, so it is imported in this module alone, and nothing else here imports it.
"""

from __future__ import annotations

from bisect import bisect_right

import pandas as pd

from pitr_pipelines.catalog.manifest import Manifest

RESTORE_POINT_DTYPES = {
    "database": "str",
    "at": "datetime64[us, UTC]",
    "hour": "datetime64[us, UTC]",
    "kind": "str",
    "name": "str",
    "lsn": "UInt64",
    "base_day": "str",
    "base_age_s": "float64",
    "timeline": "UInt32",
}
"""The columns of `restore_points_frame`, in order, with their dtypes."""


def restore_points_frame(manifest: Manifest) -> pd.DataFrame:
    """Return a row for each restore point of every database, by database and time.

    - `database`: its configured name; `at`: the moment; `hour`: the start of the hour it ends or lies in
    - `kind`: `hour` (the end of a closed hour) or `early` (a running hour, bundled early)
    - `name`, `lsn`: of the restore point that PostgreSQL wrote there; missing where the hour was not
      sealed. The LSN is a number of bytes.
    - `base_day`: the newest base backup before it, from which a restore would start; `base_age_s`: the
      seconds of WAL to replay from there; `timeline`: of its recovery window

    The dtypes are those of `RESTORE_POINT_DTYPES`, also if there is no point at all.
    """
    rows = []
    for database, held in sorted(manifest.databases.items()):
        ended = [base.ended_at for base in held.bases]
        for point in sorted(held.restore_points, key=lambda point: point.at):
            index = bisect_right(ended, point.at) - 1
            window = next((w for w in held.windows if w.start <= point.at <= w.end), None)
            rows.append(
                (
                    database,
                    point.at,
                    point.hour.start,
                    point.kind,
                    point.name,
                    None if point.lsn is None else int(point.lsn),
                    str(held.bases[index].day) if index >= 0 else None,
                    (point.at - ended[index]).total_seconds() if index >= 0 else None,
                    window.timeline if window else None,
                )
            )
    columns = list(zip(*rows, strict=True)) or [()] * len(RESTORE_POINT_DTYPES)
    return pd.DataFrame(
        {
            name: pd.Series(list(values), dtype=dtype)
            for (name, dtype), values in zip(RESTORE_POINT_DTYPES.items(), columns, strict=True)
        }
    )
