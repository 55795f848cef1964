"""Clips: probe, decode, trim, crop and resample any video; encode H.264 that browsers play.

ffmpeg does the work. Only the frames that are used are decoded, and ffmpeg itself applies the rotation that phones
store as metadata. A picture is a clip too, a still one of a single frame; `stills` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ClipError, SettingError
from .ffmpeg import DEINTERLACE, SCALER, TAGS, TONE_MAP, encode, run_ffmpeg, source_args, whole
from .probing import MAX_PIXELS, MAX_SECONDS, MIN_SIDE, USUAL_FPS, VideoInfo, probe, undecodable
from .stills import read_picture

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
        raise undecodable(path, info.codec, f" from {start:g} s on")
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
    or not at all. Raises StorageError when it cannot be written.
    """
    path = Path(path)
    _, h, w, _ = clip.frames.shape
    even = np.pad(clip.frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    rate = f"{clip.fps:.6f}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w + w % 2}x{h + h % 2}", "-framerate", rate, "-i", "pipe:0"]
    colour = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv:flags={SCALER},format=yuv420p,{TAGS}"]
    codec = ["-c:v", "libx264", "-preset", "medium", "-crf", "16", "-movflags", "+faststart", "-fflags", "+bitexact"]
    told = ["-metadata", f"comment={note}"] if note else []
    with whole(path) as part, _sound(audio_from, start, clip.seconds, part) as sound:
        encode(path, *raw, *sound, *colour, *codec, *told, "-f", "mp4", f"file:{part}", data=even.tobytes())


def write_gif(path: str | Path, clip: Clip, *, note: str = "") -> None:
    """Write a looping GIF in 256 colours of the clip's own, `note` as its comment (up to 255 bytes).

    The file appears whole or not at all. Raises StorageError when it cannot be written.
    """
    path = Path(path)
    _, h, w, _ = clip.frames.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-framerate", f"{clip.fps:.6f}", "-i", "pipe:0"]
    palette = ["-filter_complex", "split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=sierra2_4a"]
    with whole(path) as part:
        encode(path, *raw, *palette, "-f", "gif", f"file:{part}", data=np.ascontiguousarray(clip.frames).tobytes())
        told = note.encode("ascii", "replace")[:255]
        if told:  # a comment extension before the trailer, which the encoder does not write itself
            part.write_bytes(part.read_bytes()[:-1] + b"\x21\xfe" + bytes([len(told)]) + told + b"\x00;")


def side_by_side(*clips: Clip) -> Clip:
    """Join clips of equal length, height and rate from left to right: (f, h, w₁ + w₂ + …, 3)."""
    if len({(*clip.frames.shape[:2], clip.fps) for clip in clips}) != 1:
        raise ClipError("Clips stand side by side only with the same frame count, height and fps: make them equal.")
    return Clip(np.concatenate([clip.frames for clip in clips], axis=2), clips[0].fps)


def _auto_rates(info: VideoInfo, frames: int, start: float) -> list[float]:
    """Rates to try in turn: 8 fps, then what spreads the frames over the rest of the clip, then the source's own."""
    usual = min(USUAL_FPS, info.fps)
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
    if info.picture:
        moments = [start + k / fps for k in range(frames)]
        return read_picture(path, at=moments, covered=covered, size=size)
    # Seek to before the frame on display at `start`. fps=round=up takes for k / fps the last frame at or before that
    # moment, where frames count as there a little early, since containers round their times.
    # An AVI is not sought in: its times are guessed, late by as many frames as the codec reorders.
    seek = max(0.0, start - 1 / info.fps - _EARLY) if info.timed else 0.0
    filters = [
        *([DEINTERLACE.format(info.interlaced)] if info.interlaced else []),
        *([] if info.timed else ["setpts=PTS-STARTPTS"]),
        f"settb=AVTB,setpts=PTS-{start - seek + _EARLY:.6f}/TB,fps={fps:.6f}:round=up:start_time=0",
        f"scale={covered[0]}:{covered[1]}:flags={SCALER}{f':in_color_matrix={info.matrix}' if info.matrix else ''}",
        *([TONE_MAP] if info.hdr else []),
        f"format=rgb24,crop={w}:{h}",
    ]
    done = run_ffmpeg(
        *source_args(path, start=seek if info.timed else None),
        *("-map", "0:V:0", "-vf", ",".join(filters), "-frames:v", str(frames)),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
    )
    whole = len(done.stdout) // (w * h * 3)
    return np.frombuffer(done.stdout, np.uint8, whole * w * h * 3).reshape(whole, h, w, 3).copy()


def _is_heard(source: str | Path) -> bool:
    """Whether a video has sound; one that is gone by now has none."""
    try:
        return probe(source).sound
    except ClipError:
        return False


@contextmanager
def _sound(source: str | Path | None, start: float, seconds: float, beside: Path) -> Iterator[list[str]]:
    """The arguments that add `seconds` of the source's sound, none where it has less; its samples live meanwhile
    `beside` a file that is being written."""
    if source is None or not _is_heard(source):
        yield []
        return
    raw = ["-f", "s16le", "-ar", str(_SOUND_RATE), "-ac", "2"]
    samples = beside.with_name(f"{beside.stem}.sound.part")
    try:
        run_ffmpeg(
            *source_args(Path(source), start=start), "-map", "0:a:0", "-t", f"{seconds:.6f}", *raw, f"file:{samples}"
        )
        had = samples.stat().st_size / (_SOUND_RATE * _SOUND_FRAME) if samples.exists() else 0.0
        # A twentieth of a second is an encoder's padding, not a missing end.
        if not had or had < seconds - 0.05:
            yield []
        else:
            yield [*raw, "-i", f"file:{samples}", "-map", "0:v", "-map", "1:a", "-c:a", "aac", "-b:a", "160k"]
    finally:
        samples.unlink(missing_ok=True)
