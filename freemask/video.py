"""Clips: probe, decode, trim, crop and resample any video; encode H.264 that browsers play.

All work is done by the ffmpeg program that imageio-ffmpeg carries. ffprobe is not needed: what ffmpeg prints about its
input is read instead. Only the frames that are used are decoded, and ffmpeg itself applies the rotation that phones
store as metadata. Uploads are untrusted, so only containers of video are opened, never playlists that name other files.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from .errors import ClipError, SettingError

__all__ = [
    "MAX_PIXELS",
    "MAX_SECONDS",
    "MIN_SIDE",
    "Clip",
    "VideoInfo",
    "probe",
    "read_clip",
    "side_by_side",
    "write_clip",
    "write_gif",
]

MAX_SECONDS = 300
MAX_PIXELS = 4096 * 2304
MIN_SIDE = 16

_AUTO_FPS = 8.0
_PATIENCE = 600  # seconds until ffmpeg is given up
_CONTAINERS = "mov,matroska,avi,flv,asf,mpeg,mpegts,ogg,gif,mxf,nut"
_REEXPORT = "export it again as an H.264 MP4"
# High dynamic range to the range of a screen; without it an iPhone's HDR clip comes out grey.
_TONE_MAP = (
    "format=gbrp12le,zscale=pin=bt2020:t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709"
)
_HD = 720  # lines from which an untagged stream is taken as BT.709
_MATRICES = {"bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "ycgco", "bt2020nc", "bt2020c", "ictcp", "gbr"}
_SCALER = "bicubic+accurate_rnd+full_chroma_int"
_EARLY = 0.002  # seconds
_SOUND_RATE, _SOUND_FRAME = 48000, 4  # hertz; bytes of a stereo sample of 16 bits


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames (f, h, w, 3) uint8 RGB, f ≥ 1, shown at `fps` frames a second."""

    frames: np.ndarray
    fps: float

    def __post_init__(self) -> None:
        f = self.frames
        if f.ndim != 4 or f.shape[-1] != 3 or f.dtype != np.uint8 or not f.size:
            raise ClipError(f"A clip needs frames (f, h, w, 3) of uint8, not {f.shape} of {f.dtype}: convert them.")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ClipError(f"A clip cannot play at {self.fps} frames a second: give a rate above 0.")

    @property
    def seconds(self) -> float:
        """How long the clip plays."""
        return len(self.frames) / self.fps


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    `width` and `height` are pixels as displayed: after rotation and with square pixels. `fps` is the mean rate,
    `duration` is in seconds, `rotation` is the counter-clockwise turn in degrees (0 to 359) that display applies,
    `hdr` says that the brightness is coded for HDR screens (HLG or PQ), and `matrix` names the YUV matrix that an
    untagged stream is read by, as browsers do: bt709 from 720 lines on, else bt601; it is empty where the stream is
    tagged.
    """

    width: int
    height: int
    fps: float
    duration: float
    codec: str
    pix_fmt: str
    rotation: int
    has_audio: bool
    hdr: bool
    matrix: str


def probe(path: str | Path) -> VideoInfo:
    """Read a video file's header and decode its first frame.

    Raises ClipError when there is no such file, when it holds no video, is cut off or cannot be decoded, and when it is
    outside the limits MIN_SIDE, MAX_PIXELS (of a frame) and MAX_SECONDS.
    """
    path = Path(path)
    if not path.exists():
        raise ClipError(f'There is no file "{path}": check the path.')
    if not path.is_file():
        raise ClipError(f'"{path}" is not a file: give one video file.')
    if not path.stat().st_size:
        raise ClipError(f'"{path.name}" is empty: download or export it again.')
    first = _ffmpeg(*_source(path), *_video_only("-frames:v", "1"))
    log = first.stderr.decode(errors="replace")
    header = log.partition("\nStream mapping:")[0]
    # `  Stream` with two spaces starts a stream; what follows it, deeper indented, is the stream's metadata.
    streams = re.findall(r"^  Stream #\d.*(?:\n   .*)*", header, re.MULTILINE)
    video = next((s for s in streams if ": Video: " in s and "(attached pic)" not in s), None)
    if video is None:
        raise _not_a_video(path, log, streams)
    info = _parse(path, header, video, has_audio=any(": Audio: " in s for s in streams))
    if b"frame=1\n" not in first.stdout:
        raise _undecodable(path, info.codec)
    return info


def read_clip(
    path: str | Path,
    *,
    frames: int = 8,
    start: float = 0.0,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> Clip:
    """Read `frames` frames from `start` seconds on, frame k being the one on display at start + k / fps.

    `fps` None means 8, or the source's rate where that is lower; where too little is left after `start` for that, the
    frames are spread evenly over what is left, up to the source's own rate. `size` = (w, h) in pixels makes frames of
    exactly that size: resized until they cover it, then cropped about the centre. None keeps the size as displayed.

    Raises ClipError as `probe` does, and when `start` is past the end or fewer frames than asked are there;
    SettingError when a number is out of its range.
    """
    if frames < 1:
        raise SettingError(f"frames is {frames}: it must be at least 1.")
    if not 0 <= start < math.inf:
        raise SettingError(f"start is {start}: it must be 0 seconds or more.")
    if fps is not None and not 0 < fps < math.inf:
        raise SettingError(f"fps is {fps}: it must be above 0, or left out.")
    if size is not None and min(size) < MIN_SIDE:
        raise SettingError(f"size is {size[0]}x{size[1]}: both sides must be at least {MIN_SIDE} pixels.")
    path = Path(path)
    info = probe(path)
    if start >= info.duration:
        raise ClipError(
            f'"{path.name}" lasts {info.duration:g} s, so nothing starts at {start:g} s: choose a start before its end.'
        )
    w, h = size or (info.width, info.height)
    cover = max(w / info.width, h / info.height)
    covered = max(w, round(info.width * cover)), max(h, round(info.height * cover))
    if covered[0] * covered[1] > 4 * MAX_PIXELS:
        raise ClipError(f'"{path.name}" is {info.width}x{info.height}, too unlike {w}x{h}: choose a size nearer to it.')
    rates = _auto_rates(info, frames, start) if fps is None else [fps]
    found = np.empty((0,))
    for rate in rates:
        found = _decode(path, info, frames=frames, start=start, fps=rate, covered=covered, size=(w, h))
        if len(found) == frames:
            return Clip(found, float(rate))
    if not len(found):
        raise _undecodable(path, info.codec, f" from {start:g} s on")
    cure = "ask for fewer frames" + (", start earlier" if start else "") + (", raise fps" if fps is not None else "")
    if len(found) / rates[-1] < (info.duration - start) / 2:
        cure = "download it again if it was cut off, " + cure
    raise ClipError(
        f'"{path.name}" has {len(found)} frame{"s" if len(found) > 1 else ""} from {start:g} s on at {rates[-1]:g} fps,'
        f" and {frames} are asked: {cure} or choose a longer clip."
    )


def write_clip(
    path: str | Path, clip: Clip, *, audio_from: str | Path | None = None, start: float = 0.0, note: str = ""
) -> None:
    """Write an MP4 (H.264, yuv420p, faststart) that browsers play; an odd side grows by one repeated row or column.

    `audio_from` names the video whose sound from `start` seconds on goes with the clip; a source with no sound, or with
    less of it than the clip is long, gives a silent video. `note` is kept as the file's comment. The file appears whole
    or not at all. Raises ClipError when it cannot be written.
    """
    path = Path(path)
    _, h, w, _ = clip.frames.shape
    even = np.pad(clip.frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    rate = f"{clip.fps:.6f}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w + w % 2}x{h + h % 2}", "-framerate", rate, "-i", "pipe:0"]
    # Said outright, since players guess the matrix of an untagged video by its size.
    colour = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv:flags={_SCALER},format=yuv420p"]
    colour += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    codec = ["-c:v", "libx264", "-preset", "medium", "-crf", "16", "-movflags", "+faststart", "-fflags", "+bitexact"]
    told = ["-metadata", f"comment={note}"] if note else []
    with _whole(path) as part, _sound(audio_from, start, clip.seconds) as sound:
        _encode(path, *raw, *sound, *colour, *codec, *told, "-f", "mp4", f"file:{part}", data=even.tobytes())


def write_gif(path: str | Path, clip: Clip, *, note: str = "") -> None:
    """Write a looping GIF in 256 colours of the clip's own, `note` as its comment (up to 255 bytes).

    The file appears whole or not at all. Raises ClipError when it cannot be written.
    """
    path = Path(path)
    _, h, w, _ = clip.frames.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-framerate", f"{clip.fps:.6f}", "-i", "pipe:0"]
    palette = ["-filter_complex", "split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=sierra2_4a"]
    with _whole(path) as part:
        _encode(path, *raw, *palette, "-f", "gif", f"file:{part}", data=np.ascontiguousarray(clip.frames).tobytes())
        told = note.encode("ascii", "replace")[:255]
        if told:  # a comment extension before the trailer, which the encoder does not write itself
            part.write_bytes(part.read_bytes()[:-1] + b"\x21\xfe" + bytes([len(told)]) + told + b"\x00;")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is whole, and else leaves no trace."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise ClipError(f'"{path}" cannot be written: {error.strerror}; choose another place.') from error
    finally:
        with suppress(OSError):
            part.unlink()


def _encode(path: Path, *args: str, data: bytes) -> None:
    """Run ffmpeg on raw frames; raises ClipError with its reason."""
    done = _ffmpeg(*args, data=data)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ClipError(f'"{path}" cannot be written: check the folder and its free space ({reason}).')


def side_by_side(*clips: Clip) -> Clip:
    """Join clips of equal length, height and rate from left to right: (f, h, w₁ + w₂ + …, 3)."""
    if len({(*clip.frames.shape[:2], clip.fps) for clip in clips}) != 1:
        raise ClipError("Clips stand side by side only with the same frame count, height and fps: make them equal.")
    return Clip(np.concatenate([clip.frames for clip in clips], axis=2), clips[0].fps)


def _ffmpeg(*args: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg to its end; `data` goes to its standard input."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *args]
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClipError(f"The video took over {_PATIENCE} s to process: give a shorter or smaller one.") from error


def _source(path: Path, *, start: float = 0.0) -> list[str]:
    return [
        *("-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS),
        *("-ss", f"{start:.6f}", "-i", f"file:{path}"),
    ]


def _video_only(*options: str) -> list[str]:
    """Send the video stream nowhere, and what was counted on the way to standard output."""
    return ["-map", "0:V:0", *options, "-f", "null", "-nostats", "-progress", "pipe:1", "-"]


def _parse(path: Path, header: str, video: str, *, has_audio: bool) -> VideoInfo:
    """Read ffmpeg's description of its input, such as

    Duration: 00:00:02.00, start: 0.000000, bitrate: 99 kb/s
      Stream #0:0(und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709), 64x48 [SAR 1:1 DAR 4:3], 30 fps
    """
    line = video.splitlines()[0].partition(": Video: ")[2]
    codec = line.split(",")[0].split()[0]
    if codec in ("none", "unknown"):
        tag = re.search(r"\((\S+) / 0x", line)
        raise _undecodable(path, tag[1] if tag else codec)
    size = re.search(r", (\d+)x(\d+)", line)
    if size is None:
        raise _undecodable(path, codec)
    width, height = int(size[1]), int(size[2])
    aspect = re.search(r"SAR (\d+):(\d+)", line)
    if aspect and int(aspect[1]) and int(aspect[2]):
        width = max(1, round(width * int(aspect[1]) / int(aspect[2])))
    turn = re.search(r"rotation of (-?[\d.]+) degrees", video)
    rotation = round(float(turn[1])) % 360 if turn else 0
    if rotation in (90, 270):
        width, height = height, width
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS:,} pixels (4096x2304)"
        raise ClipError(f'"{path.name}" is {width}x{height}, over the limit of {limit}: export it smaller.')
    if min(width, height) < MIN_SIDE:
        raise ClipError(f'"{path.name}" is {width}x{height}: both sides must be at least {MIN_SIDE} pixels.')
    clock = re.search(r"^  Duration: (\d+):(\d+):([\d.]+)", header, re.MULTILINE)
    rate = re.search(r"([\d.]+) fps", line)  # a rate such as "1k fps" is the clock's, not the picture's
    duration = int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else 0.0
    fps = float(rate[1]) if rate else 0.0
    if not (duration and fps):
        count, last = _walk(path)
        fps = fps or (count / last if last else _AUTO_FPS)
        duration = duration or max(count / fps, last)
    if duration > MAX_SECONDS:
        raise ClipError(f'"{path.name}" lasts {duration:g} s, over the limit of {MAX_SECONDS} s: trim it.')
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
        pix_fmt=pix_fmt,
        rotation=rotation,
        has_audio=has_audio,
        hdr="arib-std-b67" in line or "smpte2084" in line,
        matrix="" if matrices or not yuv else "bt709" if int(size[2]) >= _HD else "bt601",
    )


def _walk(path: Path) -> tuple[int, float]:
    """How many packets of video there are and the last one's second, without decoding.

    Needed where the header says neither rate nor duration, as in what browsers record.
    """
    walked = _ffmpeg(*_source(path), *_video_only("-c", "copy", "-t", str(MAX_SECONDS + 1)))
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
    return ClipError(f'"{path.name}" is not a video that can be read: give an MP4, MOV, WebM or MKV.')


def _undecodable(path: Path, codec: str, where: str = "") -> ClipError:
    return ClipError(
        f'No frame of "{path.name}" can be decoded{where}: it is cut off or damaged, or its codec ("{codec}") is not'
        f" supported; {_REEXPORT}."
    )


def _auto_rates(info: VideoInfo, frames: int, start: float) -> list[float]:
    """Rates to try in turn: 8 fps, then what spreads the frames over the rest of the clip, then the source's own."""
    usual = min(_AUTO_FPS, info.fps)
    spread = round(frames / (info.duration - start), 3)
    return sorted({usual, min(max(usual, spread), info.fps), info.fps})


def _decode(
    path: Path,
    info: VideoInfo,
    *,
    frames: int,
    start: float,
    fps: float,
    covered: tuple[int, int],
    size: tuple[int, int],
) -> np.ndarray:
    """Up to `frames` frames (f, h, w, 3) uint8 RGB, writable, resized to `covered`, then cropped to `size`."""
    w, h = size
    # Seek to before the frame on display at `start`. fps=round=up takes for k / fps the last frame at or before that
    # moment, where frames count as there a little early, since containers round their times.
    seek = max(0.0, start - 1 / info.fps - _EARLY)
    filters = [
        f"settb=AVTB,setpts=PTS-{start - seek + _EARLY:.6f}/TB,fps={fps:.6f}:round=up:start_time=0",
        f"scale={covered[0]}:{covered[1]}:flags={_SCALER}{f':in_color_matrix={info.matrix}' if info.matrix else ''}",
        *([_TONE_MAP] if info.hdr else []),
        f"format=rgb24,crop={w}:{h}",
    ]
    done = _ffmpeg(
        *_source(path, start=seek),
        *("-map", "0:V:0", "-vf", ",".join(filters), "-frames:v", str(frames)),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
    )
    whole = len(done.stdout) // (w * h * 3)
    return np.frombuffer(done.stdout, np.uint8, whole * w * h * 3).reshape(whole, h, w, 3).copy()


@contextmanager
def _sound(source: str | Path | None, start: float, seconds: float) -> Iterator[list[str]]:
    """The arguments that add `seconds` of the source's sound, none where it has less; its samples live meanwhile."""
    if source is None:
        yield []
        return
    raw = ["-f", "s16le", "-ar", str(_SOUND_RATE), "-ac", "2"]
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "sound.raw"
        _ffmpeg(*_source(Path(source), start=start), "-map", "0:a:0", "-t", f"{seconds:.6f}", *raw, f"file:{samples}")
        had = samples.stat().st_size / (_SOUND_RATE * _SOUND_FRAME) if samples.exists() else 0.0
        # A twentieth of a second is an encoder's padding, not a missing end.
        if had < seconds - 0.05:
            yield []
        else:
            yield [*raw, "-i", f"file:{samples}", "-map", "0:v", "-map", "1:a", "-c:a", "aac", "-b:a", "160k"]
