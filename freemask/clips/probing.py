"""What a video or a picture holds, and why one cannot be used.

ffprobe is not needed: what ffmpeg prints about its input is read instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..errors import ClipError
from .ffmpeg import run_ffmpeg, source_args, video_only
from .stills import Picture, frame_lengths, open_picture

__all__ = ["MAX_PIXELS", "MAX_SECONDS", "MIN_SIDE", "USUAL_FPS", "VideoInfo", "probe", "undecodable"]

MAX_SECONDS = 300
MAX_PIXELS = 4096 * 2304
MAX_STILL = 4 * MAX_PIXELS  # photos are larger than videos
MAX_MOVING = 2**29  # pixels of all frames of a picture that moves, each of which is decoded: 1,700 frames of 640 x 480
MIN_SIDE = 16
USUAL_FPS = 8.0

_REEXPORT = "export it again as an H.264 MP4"
_HD = 720  # lines from which an untagged stream is taken as BT.709
_MATRICES = {"bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "ycgco", "bt2020nc", "bt2020c", "ictcp", "gbr"}


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    `width` and `height` are pixels as displayed: after rotation and with square pixels. `fps` is the mean rate,
    `duration` is in seconds, `hdr` says that the brightness is coded for HDR screens (HLG or PQ), and `matrix` names
    the YUV matrix that an untagged stream is read by, as browsers do: bt709 from 720 lines on, else bt601; it is empty
    where the stream is tagged. `still` says that there is one frame only, `picture` that Pillow reads it, and `timed`
    that the container tells when a frame is shown, as AVI does not. `interlaced` says which frames have two fields:
    none, those that their decoder tells of ("interlaced"), or "all", where the header alone tells. `sound` says that
    there is a stream of it.
    """

    width: int
    height: int
    fps: float
    duration: float
    codec: str
    hdr: bool
    matrix: str
    still: bool
    picture: bool = False
    timed: bool = True
    interlaced: Literal["", "interlaced", "all"] = ""
    sound: bool = False


def probe(path: str | Path) -> VideoInfo:
    """Read the header of a video, or of a PNG, JPEG or WebP picture, and decode its first frames.

    Raises ClipError when there is no such file, when it holds no video, is cut off or cannot be decoded, and when it is
    outside the limits MIN_SIDE, MAX_PIXELS (of a frame; MAX_STILL of a still picture) and MAX_SECONDS.
    """
    path = Path(path)
    if not path.exists():
        raise ClipError(f'There is no file "{path}": check the path.')
    if not path.is_file():
        raise ClipError(f'"{path}" is not a file: give one video file.')
    about = path.stat()
    if not about.st_size:
        raise ClipError(f'"{path.name}" is empty: download or export it again.')
    return _probe(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _probe(path: Path, size: int, changed: int) -> VideoInfo:
    """Of a file as it is now: an edit asks several times."""
    picture = open_picture(path)
    if picture is not None:
        return _of_picture(path, picture)
    first = run_ffmpeg(*source_args(path), *video_only("-vf", "showinfo=checksum=0", "-frames:v", "2"))
    log = first.stderr.decode(errors="replace")
    header = log.partition("\nStream mapping:")[0]
    # `  Stream` with two spaces starts a stream; what follows it, deeper indented, is the stream's metadata.
    streams = re.findall(r"^  Stream #\d.*(?:\n   .*)*", header, re.MULTILINE)
    video = next((s for s in streams if ": Video: " in s and "(attached pic)" not in s), None)
    if video is None:
        raise _not_a_video(path, log, streams)
    info = replace(_parse(path, header, video), sound=any(": Audio: " in s for s in streams))
    decoded = re.findall(rb"^frame=(\d+)", first.stdout, re.MULTILINE)
    if not decoded or decoded[-1] == b"0":
        raise undecodable(path, info.codec)
    # where more are promised, the rest is damaged
    if re.search(r"^\[Parsed_showinfo.* i:[TB] ", log, re.MULTILINE):
        info = replace(info, interlaced="interlaced")
    return replace(info, still=decoded[-1] == b"1" and info.duration * info.fps < 2.5)


def _parse(path: Path, header: str, video: str) -> VideoInfo:
    """Read ffmpeg's description of its input, such as

    Duration: 00:00:02.00, start: 0.000000, bitrate: 99 kb/s
      Stream #0:0(und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709), 64x48 [SAR 1:1 DAR 4:3], 30 fps
    """
    line = video.splitlines()[0].partition(": Video: ")[2]
    codec = line.split(",")[0].split()[0]
    if codec in ("none", "unknown"):
        tag = re.search(r"\((\S+) / 0x", line)
        raise undecodable(path, tag[1] if tag else codec)
    size = re.search(r", (\d+)x(\d+)", line)
    if size is None:
        raise undecodable(path, codec)
    width, height = int(size[1]), int(size[2])
    aspect = re.search(r"SAR (\d+):(\d+)", line)
    if aspect and int(aspect[1]) and int(aspect[2]):
        width = max(1, round(width * int(aspect[1]) / int(aspect[2])))
    turn = re.search(r"rotation of (-?[\d.]+) degrees", video)
    if turn and round(float(turn[1])) % 180:
        width, height = height, width
    _check_size(path, width, height, MAX_PIXELS)
    clock = re.search(r"^  Duration: (\d+):(\d+):([\d.]+)", header, re.MULTILINE)
    rate = re.search(r"([\d.]+) fps", line)  # a rate such as "1k fps" is the clock's, not the picture's
    duration = int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else 0.0
    fps = float(rate[1]) if rate else 0.0
    if not (duration and fps):
        count, last = _walk(path)
        fps = fps or (count / last if last else USUAL_FPS)
        duration = duration or max(count / fps, last)
    _check_length(path, duration)
    pixels = re.search(r"(?:\), |^\w+, )(\w+)(?:\(([^)]*)\))?", line)
    pix_fmt, told = (pixels[1], pixels[2] or "") if pixels else ("unknown", "")
    # such as (tv, bt709, progressive) or (pc, unknown/bt709/iec61966-2-1): the matrix is before the first slash
    matrices = {word.partition("/")[0] for word in told.split(", ")} & _MATRICES
    yuv = pix_fmt.startswith(("yuv", "nv", "p0", "p2", "p4", "uyvy"))
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        duration=duration,
        codec=codec,
        hdr="arib-std-b67" in line or "smpte2084" in line,
        matrix="" if matrices or not yuv else "bt709" if int(size[2]) >= _HD else "bt601",
        still=False,
        timed="Input #0, avi," not in header,
        interlaced="all" if re.search(r"\b(?:top|bottom) (?:coded )?first\b", line) else "",
    )


def _of_picture(path: Path, picture: Picture) -> VideoInfo:
    """A still picture, or one that moves."""
    _check_size(path, picture.width, picture.height, MAX_PIXELS if picture.moves else MAX_STILL)
    if picture.moves and picture.frames * picture.width * picture.height > MAX_MOVING:
        size = f"{picture.frames:,} frames of {picture.width}x{picture.height}"
        raise ClipError(f'"{path.name}" has {size}, too many for a picture that moves: export it as an MP4.')
    lengths = frame_lengths(path, MAX_SECONDS)
    _check_length(path, sum(lengths))
    return VideoInfo(
        width=picture.width,
        height=picture.height,
        fps=len(lengths) / sum(lengths),
        duration=sum(lengths),
        codec=picture.format,
        hdr=False,
        matrix="",
        still=len(lengths) == 1,
        picture=True,
    )


def _check_size(path: Path, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ClipError(f'"{path.name}" is {width}x{height}, over the limit of {most:,} pixels: export it smaller.')
    if min(width, height) < MIN_SIDE:
        raise ClipError(f'"{path.name}" is {width}x{height}: both sides must be at least {MIN_SIDE} pixels.')


def _check_length(path: Path, seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise ClipError(f'"{path.name}" lasts {seconds:g} s, over the limit of {MAX_SECONDS} s: trim it.')


def _walk(path: Path) -> tuple[int, float]:
    """How many packets of video there are and the last one's second, without decoding.

    Needed where the header says neither rate nor duration, as in what browsers record.
    """
    walked = run_ffmpeg(*source_args(path), *video_only("-c", "copy", "-t", str(MAX_SECONDS + 1)))
    count = re.findall(rb"^frame=(\d+)", walked.stdout, re.MULTILINE)
    last = re.findall(rb"^out_time_us=(\d+)", walked.stdout, re.MULTILINE)
    return int(count[-1]) if count else 0, int(last[-1]) / 1e6 if last else 0.0


def _not_a_video(path: Path, log: str, streams: list[str]) -> ClipError:
    if any(": Audio: " in s for s in streams):
        return ClipError(f'"{path.name}" holds sound but no moving picture: give a video.')
    if "Input #0" in log:
        return ClipError(f'"{path.name}" holds no frames: {_REEXPORT}.')
    if "moov atom not found" in log and "low score" not in log:
        return ClipError(f'"{path.name}" is cut off, its index is missing: download it again, or {_REEXPORT}.')
    return ClipError(f'"{path.name}" is not a video that can be read: give an MP4, MOV, WebM, MKV, GIF or a picture.')


def undecodable(path: Path, codec: str, where: str = "") -> ClipError:
    return ClipError(
        f'No frame of "{path.name}" can be decoded{where}: it is cut off or damaged, or its codec ("{codec}") is not'
        f" supported; {_REEXPORT}."
    )
