"""A small H.264 video of any clip, for browsers that cannot play the clip itself. It is looked at, never edited."""

from __future__ import annotations

from pathlib import Path

from .ffmpeg import DEINTERLACE, TAGS, TONE_MAP, encode, source_args, whole
from .probing import MIN_SIDE, probe
from .video import read_clip, write_clip

__all__ = ["write_preview"]

_SIDE, _FPS = 640, 30  # the largest there are
_FRAMES = 300  # of a picture that moves, which are held in memory


def write_preview(path: str | Path, out: Path) -> None:
    """Write the whole of a clip, or of a picture, as an MP4 that browsers play, with its sound.

    Sides are at most 640 pixels, the rate at most 30 frames a second. The file appears whole or not at all.
    Raises ClipError as `probe` does, StorageError when it cannot be written.
    """
    path = Path(path)
    info = probe(path)
    share = min(1.0, _SIDE / max(info.width, info.height))
    w, h = (max(MIN_SIDE, 2 * round(share * side / 2)) for side in (info.width, info.height))
    if info.picture:
        fps = min(info.fps, _FPS, _FRAMES / info.duration)
        count = max(1, int(info.duration * fps))
        write_clip(out, read_clip(path, frames=count, fps=fps, size=(w, h)))
        return
    untagged = f":in_color_matrix={info.matrix}" if info.matrix else ""
    tone = [TONE_MAP] if info.hdr else []
    before = [DEINTERLACE.format(info.interlaced)] if info.interlaced else []
    before += [f"fps={_FPS}"] if info.fps > _FPS else []
    colour = ["scale=out_color_matrix=bt709:out_range=tv", "format=yuv420p", "setsar=1", TAGS]
    filters = ",".join([*before, f"scale={w}:{h}{untagged}", *tone, *colour])
    video = ["-map", "0:V:0", "-fpsmax", str(_FPS), "-vf", filters]
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24"]
    sound = ["-map", "0:a:0?", "-ac", "2", "-c:a", "aac", "-b:a", "96k"]
    with whole(out) as part:
        encode(out, *source_args(path), *video, *codec, *sound, "-movflags", "+faststart", "-f", "mp4", f"file:{part}")
