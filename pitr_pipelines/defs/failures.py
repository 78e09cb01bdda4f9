"""Our errors as Dagster shows them: what happened and what to do next, and never a retry.

A retry by Dagster would overlap a step that may still be at work, and what we refuse once we refuse
again. Errors that nobody foresaw stay what they are, with their traceback.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from pitr_pipelines.errors import NotRestorable, PitrError


@contextmanager
def shown_as_failures() -> Iterator[None]:
    """Turn what the core raises within the block into a Failure that a person can act on."""
    try:
        yield
    except PitrError as error:
        raise failure(error) from None
    except OSError as error:
        raise failure(from_system(error)) from error


def failure(error: PitrError) -> dg.Failure:
    """Return the failure that shows one error."""
    metadata: dict[str, dg.MetadataValue[Any]] = {
        "what": dg.MetadataValue.text(error.what),
        "remedy": dg.MetadataValue.text(error.remedy),
    }
    if isinstance(error, NotRestorable) and error.nearest:
        moments = [moment.isoformat(sep=" ") for moment in error.nearest]
        metadata["nearest_moments"] = dg.MetadataValue.json(moments)
    return dg.Failure(f"{error.what}\n{error.remedy}", metadata, allow_retries=False)


def failure_of_some(done: int, failed: Sequence[tuple[str, PitrError]]) -> dg.Failure:
    """Return the failure of a step that went on after errors: how much it did, and each error."""
    if len(failed) == 1 and not done:
        return failure(failed[0][1])
    lines = [
        f"{len(failed)} of {len(failed) + done} failed" + ("; the others were finished." if done else ".")
    ]
    lines += [f"{name}: {error.what}" for name, error in failed]
    lines += dict.fromkeys(error.remedy for _, error in failed)
    return dg.Failure(
        "\n".join(lines),
        {
            "failed": dg.MetadataValue.json([name for name, _ in failed]),
            "what": dg.MetadataValue.text("\n".join(f"{name}: {error.what}" for name, error in failed)),
        },
        allow_retries=False,
    )


def from_system(error: OSError) -> PitrError:
    """Return an error of the operating system with what can be done about it."""
    subject = f"{error.filename}: " if error.filename else ""
    return PitrError(
        f"{subject}{error.strerror or error}",
        remedy="Is the volume mounted, has it room, and may the user that Dagster runs as write there?",
    )
