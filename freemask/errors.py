"""The errors a person may see, as one tree; every message names the fault and the cure.

FreeMaskError
├── InputError        what the user gave cannot be used (exit code 2 on the command line)
│   ├── ClipError     the video: missing, unreadable, too short, too large
│   ├── PromptError   the prompts: empty, identical, a word that is not there
│   └── SettingError  a number out of its range, an unknown task or backbone
├── BackboneError     the model: a missing file, a wrong layout, no network
├── StorageError      a file that cannot be written: a full disk, a folder that is read-only
├── DeviceLost        the GPU answers this process no more
├── MemoryShortage  the edit does not fit this machine, even in its most frugal way
├── MaskError         an attention map that holds no mask
└── MetricError       a figure whose model is not to be had
"""

__all__ = [
    "BackboneError",
    "ClipError",
    "DeviceLost",
    "FreeMaskError",
    "InputError",
    "MaskError",
    "MemoryShortage",
    "MetricError",
    "PromptError",
    "SettingError",
    "StorageError",
    "first_line",
]


class FreeMaskError(Exception):
    """Base of every error that FreeMask raises on purpose."""


class InputError(FreeMaskError):
    """What the user gave cannot be used."""


class ClipError(InputError):
    """The video is missing, unreadable, too short or too large."""


class PromptError(InputError):
    """The prompts are empty, identical, unknown to the backbone, or lack a word."""


class SettingError(InputError):
    """A setting is out of its range or names something that does not exist."""


class BackboneError(FreeMaskError):
    """The model cannot be loaded: a missing file, a wrong layout, no network."""


class StorageError(FreeMaskError):
    """A file cannot be written: the disk is full, the folder is read-only, or no folder."""


class DeviceLost(FreeMaskError):
    """The GPU failed in a way after which it answers this process no more."""


class MemoryShortage(FreeMaskError):
    """The edit does not fit this machine's memory, even in its most frugal way."""


class MaskError(FreeMaskError):
    """An attention map holds no usable mask."""


class MetricError(FreeMaskError):
    """A metric's library or weights are not to be had; the message holds the reason."""


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
