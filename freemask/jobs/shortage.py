"""What an edit does where the machine fails it: where memory runs out it goes on in a more frugal way, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import TypeVar

from ..clips.ffmpeg import is_unwritable, unwritable
from ..errors import DeviceLost, FreeMaskError, MemoryShortage
from ..families.devices import free_memory, is_lost, is_out_of_memory
from ..settings import FeatureSource
from ..steps import Steps

__all__ = ["Way", "fit", "told_of_faults"]

T = TypeVar("T")

SHORTAGE = (
    "Memory ran out even in the most frugal way. Take a smaller size, or end what else uses this device's memory; "
    "fewer frames help up to the number that the backbone sees at once. The inversion, where it was done, is kept."
)


LOST = (
    "The GPU failed under this edit and answers no more until the program is started anew, which the page does itself: "
    "load it again in a minute and press Edit. The inversion, where it was done, is kept."
)


@contextmanager
def told_of_faults(out: Path) -> Iterator[None]:
    """Raises MemoryShortage where memory runs out, StorageError where `out` or another file cannot be written, and
    DeviceLost where the GPU is gone, without what the failure still holds."""
    try:
        yield
    except FreeMaskError:
        raise
    except Exception as error:
        told: FreeMaskError
        if is_out_of_memory(error):
            told = MemoryShortage(SHORTAGE)
        elif is_lost(error):
            told = DeviceLost(LOST)
        elif is_unwritable(error):
            told = unwritable(Path(error.filename or out), error)
        else:
            raise
        clear_frames(error.__traceback__)
        raise told from None


Way = tuple[FeatureSource, bool]  # where the source's features come from, and whether batch rows run one at a time


def fit(ways: Sequence[Way], attempt: Callable[[Way], Steps[T]], notes: list[str]) -> Steps[T]:
    """The first attempt for which memory suffices; `notes` are told of those for which it did not.

    Raises MemoryShortage where it suffices for none.
    """
    ways = list(dict.fromkeys(ways))
    for i, way in enumerate(ways):
        try:
            return (yield from attempt(way))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        if i + 1 < len(ways):
            how = "one batch row at a time, which is slower" if ways[i + 1][1] > way[1] else "replaying the source"
            notes.append(f"Memory ran out, so the edit went on {how}.")
    raise MemoryShortage(SHORTAGE)
