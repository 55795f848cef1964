"""The ffmpeg program that imageio-ffmpeg carries: how it is run, and which files it may open.

Uploads are untrusted, so only containers of video are opened, never playlists that name other files.
"""

from __future__ import annotations

import errno
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

import imageio_ffmpeg

from ..errors import ClipError, StorageError

__all__ = [
    "DEINTERLACE",
    "SCALER",
    "TAGS",
    "TONE_MAP",
    "encode",
    "is_unwritable",
    "run_ffmpeg",
    "source_args",
    "unwritable",
    "video_only",
    "whole",
]

# High dynamic range to the range of a screen; without it an iPhone's HDR clip comes out grey.
TONE_MAP = (
    "format=gbrp12le,zscale=pin=bt2020:t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709"
)
# Of two fields in a frame one stays, and the other's lines are made from those around them in space and time: in "all"
# frames, or in those that their decoder calls "interlaced".
DEINTERLACE = "bwdif=mode=send_frame:deint={}"
# What is written says its colours outright, since players guess those of an untagged video by its size.
TAGS = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
SCALER = "bicubic+accurate_rnd+full_chroma_int"
_UNWRITABLE = (  # how a system says that a file or a folder cannot be written
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)
_PATIENCE = 600  # seconds until ffmpeg is given up
_DECODED = 2**25  # pixels of a frame that a header may promise, before anything is known of it
_CONTAINERS = "mov,matroska,avi,flv,asf,mpeg,mpegts,ogg,gif,mxf,nut"


def run_ffmpeg(*args: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg to its end; `data` goes to its standard input. Raises ClipError where it takes too long."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *args]
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClipError(f"The video took over {_PATIENCE} s to process: give a shorter or smaller one.") from error


def source_args(path: Path, *, start: float | None = None) -> list[str]:
    """The arguments that open a video, from `start` seconds on."""
    seek = [] if start is None else ["-ss", f"{start:.6f}"]
    limits = ["-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-max_pixels", str(_DECODED)]
    return [*limits, *seek, "-i", f"file:{path}"]


def video_only(*options: str) -> list[str]:
    """Send the video stream nowhere, and what was counted on the way to standard output."""
    return ["-map", "0:V:0", *options, "-f", "null", "-nostats", "-progress", "pipe:1", "-"]


def is_unwritable(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error says that a file or a folder cannot be written."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE


def unwritable(path: Path, error: OSError) -> StorageError:
    """Why a file or a folder cannot be written, and the cure."""
    cure = "make room on that disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
    return StorageError(f'"{path}" cannot be written: {error.strerror or error}; {cure}.')


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is whole, and else leaves no trace; StorageError where it
    cannot be written."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def encode(path: Path, *args: str, data: bytes | None = None) -> None:
    """Run ffmpeg to write the file that becomes `path`; raises StorageError with its reason, OSError where the disk is
    full."""
    done = run_ffmpeg(*args, data=data)
    if done.returncode:
        if os.strerror(errno.ENOSPC).encode() in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise StorageError(f'"{path}" cannot be written: check the folder and its free space ({reason}).')
