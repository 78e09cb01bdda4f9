"""Two directories change places: the one that comes in gets the name, the other goes aside.

The promise: nothing is deleted or overwritten, and at any moment, also after a kill or a power cut,
it can be told from the file system alone how far it has come, and it can be finished. The two
directories are known by their inodes, which renaming does not change; so a name that was given to
something else in the meantime is never mistaken for one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pitr_pipelines import durable
from pitr_pipelines.errors import PitrError


class Swap(BaseModel):
    """`incoming` is to be at `place`, and what is there now at `aside`; all on one file system."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Path
    incoming: Path
    aside: Path
    incoming_inode: int
    outgoing_inode: int

    @classmethod
    def of(cls, place: Path, incoming: Path, aside: Path) -> Swap:
        """Return the swap of two directories that exist. Raises OSError if one does not."""
        return cls(
            place=place,
            incoming=incoming,
            aside=aside,
            incoming_inode=incoming.lstat().st_ino,
            outgoing_inode=place.lstat().st_ino,
        )

    def look(self) -> dict[Path, int]:
        """Return the inode of what is at each of the three paths, for those that exist."""
        found = {}
        for path in (self.place, self.incoming, self.aside):
            with suppress(FileNotFoundError):
                found[path] = path.lstat().st_ino
        return found


class Stage(Enum):
    """How far a swap has come."""

    NOT_BEGUN = "not begun"
    PLACE_EMPTY = "the old one is aside, the new one not yet in its place"
    EXCHANGED = "they have changed places, the old one is not yet aside"
    DONE = "done"
    UNCLEAR = "somebody else has moved them"


def stage_of(swap: Swap, found: Mapping[Path, int]) -> Stage:
    """Tell how far a swap has come, from the inodes of what is at its paths."""
    outgoing, incoming = swap.outgoing_inode, swap.incoming_inode
    at = (found.get(swap.place), found.get(swap.incoming), found.get(swap.aside))
    match at:
        case (place, source, None) if place == outgoing and source == incoming:
            return Stage.NOT_BEGUN
        case (None, source, aside) if source == incoming and aside == outgoing:
            return Stage.PLACE_EMPTY
        case (place, source, None) if place == incoming and source == outgoing:
            return Stage.EXCHANGED
        case (place, None, aside) if place == incoming and aside == outgoing:
            return Stage.DONE
        case _:
            return Stage.UNCLEAR


def swap_directories(swap: Swap) -> None:
    """Carry out a swap, or what is left of it, durably.

    Raises PitrError if the directories are not where they should be, OSError if one cannot be renamed;
    what had been done until then stays, and this can be called again.
    """
    while (stage := stage_of(swap, swap.look())) is not Stage.DONE:
        if stage is Stage.UNCLEAR:
            raise unclear(swap)
        act(swap, stage)
        _sync(swap)
    # A killed predecessor may have renamed, and not synced.
    _sync(swap)


def act(swap: Swap, stage: Stage) -> None:
    """Do the one rename that follows a stage."""
    match stage:
        case Stage.NOT_BEGUN:
            if not durable.exchange_at_once(swap.incoming, swap.place):
                swap.place.rename(swap.aside)
        case Stage.PLACE_EMPTY:
            swap.incoming.rename(swap.place)
        case Stage.EXCHANGED:
            swap.incoming.rename(swap.aside)
        case Stage.DONE | Stage.UNCLEAR:
            raise AssertionError(f"nothing follows {stage}")


def unclear(swap: Swap) -> PitrError:
    """Return the error that says what was found instead."""
    return PitrError(
        f"{swap.place} and {swap.incoming} were to change places, but somebody else has moved them "
        f"since ({', '.join(_seen(swap)) or 'none of the directories is there'})",
        remedy=f"Nothing was moved now. Look at {swap.place}, {swap.incoming} and {swap.aside}, and put the "
        "one you want into its place with mv, while no server runs.",
    )


def _seen(swap: Swap) -> Iterator[str]:
    names = {swap.incoming_inode: "the new one", swap.outgoing_inode: "the old one"}
    for path, inode in swap.look().items():
        yield f"at {path} there is {names.get(inode, 'something else')}"


def _sync(swap: Swap) -> None:
    for directory in dict.fromkeys((swap.place.parent, swap.incoming.parent, swap.aside.parent)):
        if directory.is_dir():
            durable.fsync_directory(directory)
