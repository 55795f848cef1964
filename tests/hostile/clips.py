"""Clips that are broken, lie, or are something else; and some that only look odd."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np
from hostile.cases import ANY, BAD, FINE, Shapes, damage
from PIL import Image

from freemask import page
from freemask.clips.video import Clip, read_clip, write_clip
from freemask.jobs.check import check
from freemask.settings import make_settings

shapes = Shapes()
SOURCE, EDIT = "a red car driving on the grass", "a blue car driving on the grass"
FORMATS: dict[str, tuple[str, ...]] = {
    "mp4": ("-c:v", "libx264", "-c:a", "aac"),
    "mov": ("-c:v", "prores_ks", "-c:a", "pcm_s16le"),
    "mkv": ("-c:v", "libx264", "-c:a", "libvorbis"),
    "webm": ("-c:v", "libvpx", "-c:a", "libopus"),
    "avi": ("-c:v", "mpeg4", "-c:a", "libmp3lame"),
    "ts": ("-c:v", "libx264", "-c:a", "aac"),
    "mpg": ("-r", "25", "-c:v", "mpeg2video", "-c:a", "mp2"),
    "flv": ("-c:v", "flv1", "-an"),
    "wmv": ("-c:v", "wmv2", "-an"),
    "gif": ("-an",),
}
PICTURES = {"png": {}, "jpg": {}, "webp": {"lossless": True}}


@lru_cache(maxsize=32)
def good(ending: str, folder: Path) -> bytes:
    """A good clip of 16 frames of 64 × 48, or a picture, in a format."""
    path = folder / f"good.{ending}"
    if ending in PICTURES:
        frames = [Image.fromarray(np.roll(_ramp(), 5 * k, 1)) for k in range(4 if ending != "jpg" else 1)]
        frames[0].save(path, save_all=len(frames) > 1, append_images=frames[1:], **PICTURES[ending])
    else:
        picture = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=8:d=2", "-f", "lavfi", "-i", "sine=d=2")
        ffmpeg(*picture, *FORMATS[ending], "-shortest", str(path))
    data = path.read_bytes()
    path.unlink()
    return data


def _ramp() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, x + y], -1).astype(np.uint8)


def ffmpeg(*args: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *args], check=True, timeout=60)


def write_disc(path: Path) -> Path:
    """A good clip: a red disc that crosses a green field."""
    frames = np.full((12, 64, 64, 3), (60, 140, 60), np.uint8)
    for i, frame in enumerate(frames):
        cv2.circle(frame, (16 + 3 * i, 32), 12, (200, 40, 40), -1)
    write_clip(path, Clip(frames, 8.0))
    return path


def put(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def base(rng: random.Random, folder: Path) -> tuple[str, bytes]:
    ending = rng.choice([*FORMATS, *PICTURES])
    return ending, good(ending, folder.parent)


def take(path: Path) -> Iterator[None]:
    """All that an upload meets: the facts, the trimmer, the check before an edit, the preview and the sound."""
    told = page.describe_clip(str(path))
    yield
    assert told.count("<") == 2 and told.startswith("<p "), f"HTML of its own: {told}"
    settings = make_settings(source=SOURCE, edit=EDIT, task="attribute", frames=4, steps=2)
    checked = check(path, settings)
    yield
    assert checked.clip is not None and "fm-note bad" not in told
    length = checked.settings.frames
    preview = page.make_preview(str(path), _Asked())
    yield
    trimmed = page.follow_trim(str(path), length, 0, "")
    yield
    assert trimmed is None or trimmed["used"] or trimmed["problem"]
    write_clip(path.parent / "sound.mp4", checked.clip, audio_from=path)
    if preview["video"]:
        Path(preview["video"]["path"]).unlink()
    if path.name.startswith("fields"):
        combs(path)


class _Asked:
    _data = {"asked": 1}


def combs(path: Path) -> None:
    """The lines of both fields of an interlaced clip agree once it is read: neighbouring lines differ no more than
    lines two apart do."""
    frames = read_clip(path, frames=6, start=0.2, fps=25).frames[..., 1].astype(int)
    near, far = (np.abs(np.diff(frames, axis=1)).mean(), np.abs(frames[:, 2:] - frames[:, :-2]).mean())
    assert near <= far + 2, f"combs: neighbouring lines differ by {near:.2f}, those of one field by {far:.2f}"


# --- damaged


@shapes.add(ANY)
def damaged(rng: random.Random, folder: Path) -> Path:
    ending, data = base(rng, folder)
    return put(folder, f"clip.{ending}", damage(rng, data))


@shapes.add(ANY)
def damaged_at_the_head(rng: random.Random, folder: Path) -> Path:
    ending, data = base(rng, folder)
    return put(folder, f"clip.{ending}", damage(rng, data, first=min(8, len(data) // 2), last=1000))


@shapes.add(ANY)
def damaged_index(rng: random.Random, folder: Path) -> Path:
    data = good("mp4", folder.parent)
    return put(folder, "clip.mp4", damage(rng, data, first=data.rindex(b"moov")))


@shapes.add(ANY)
def joined(rng: random.Random, folder: Path) -> Path:
    """Half of one file, half of another."""
    (_, one), (ending, other) = base(rng, folder), base(rng, folder)
    return put(folder, f"clip.{ending}", one[: len(one) // 2] + other[len(other) // 2 :])


@shapes.add(BAD)
def no_clip(rng: random.Random, folder: Path) -> Path:
    data = rng.choice((b"", b"\0" * 4096, b"no video " * 99, rng.randbytes(20_000), b"PK\3\4" + rng.randbytes(500)))
    return put(folder, f"clip.{rng.choice([*FORMATS, *PICTURES])}", data)


@shapes.add(FINE)
def good_in_any_format(rng: random.Random, folder: Path) -> Path:
    ending, data = base(rng, folder)
    return put(folder, rng.choice((f"clip.{ending}", "clip.bin", "ein clip – 動画.mp4", "a%03d.mp4", "-i.mp4")), data)


# --- headers that lie


def _patched(data: bytes, box: bytes, at: int, form: str, *values: int) -> bytes:
    """An MP4 with numbers written at an offset into each box of that name."""
    changed = bytearray(data)
    for found in re.finditer(re.escape(box), data):
        struct.pack_into(form, changed, found.start() + 4 + at, *values)
    return bytes(changed)


ODD = (0, 1, 2, 15, 255, 1000, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1)


@shapes.add(ANY)
def size_lies(rng: random.Random, folder: Path) -> Path:
    sides = [rng.choice((0, 1, 8, 17, 640, 9000, 65535)) for _ in range(2)]
    data = _patched(good("mp4", folder.parent), b"avc1", 24, ">HH", *sides)
    data = _patched(data, b"tkhd", 76, ">II", *(rng.choice(ODD) for _ in range(2)))
    return put(folder, "clip.mp4", data)


def _lies(rng: random.Random, folder: Path, odds: float, *boxes: tuple[bytes, int]) -> Path:
    """A good clip, in whose header some numbers, each with such odds, are others."""
    data = good("mp4", folder.parent)
    for box, at in boxes:
        if rng.random() < odds:
            data = _patched(data, box, at, ">I", rng.choice(ODD))
    return put(folder, "clip.mp4", data)


@shapes.add(ANY)
def duration_lies(rng: random.Random, folder: Path) -> Path:
    return _lies(rng, folder, 0.7, (b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20), (b"elst", 8))


@shapes.add(ANY)
def rate_lies(rng: random.Random, folder: Path) -> Path:
    return _lies(rng, folder, 0.6, (b"mvhd", 12), (b"mdhd", 12), (b"stts", 12))


@shapes.add(ANY)
def frames_lie(rng: random.Random, folder: Path) -> Path:
    boxes = (b"stts", 8), (b"stts", 4), (b"stsz", 8), (b"stsc", 8), (b"stco", 8), (b"ctts", 8)
    return _lies(rng, folder, 0.4, *boxes)


@shapes.add(ANY)
def avi_lies(rng: random.Random, folder: Path) -> Path:
    data = bytearray(good("avi", folder.parent))
    for _ in range(3):
        struct.pack_into("<I", data, 32 + 4 * rng.randrange(10), rng.choice(ODD))
    head = data.index(b"strf")
    struct.pack_into("<ii", data, head + 12, rng.choice((1, 64, 9000, -48)), rng.choice((1, 48, 9000, -48)))
    return put(folder, "clip.avi", bytes(data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def apng(side: tuple[int, int], frames: int, *, said: int | None = None, shown: tuple[int, int] = (1, 100)) -> bytes:
    """An animated PNG of grey frames that are all alike, each shown for a share of a second."""
    w, h = side
    row = zlib.compress(bytes((1 + w) * h), 9)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0))]
    parts.append(_chunk(b"acTL", struct.pack(">II", frames if said is None else said, 0)))
    count = 0
    for k in range(frames):
        parts.append(_chunk(b"fcTL", struct.pack(">IIIIIHHBB", count, w, h, 0, 0, *shown, 0, 0)))
        count += 1 + (k > 0)
        parts.append(_chunk(b"IDAT", row) if k == 0 else _chunk(b"fdAT", struct.pack(">I", count - 1) + row))
    return b"".join([*parts, _chunk(b"IEND", b"")])


@shapes.add(BAD)
def png_says_it_is_huge(rng: random.Random, folder: Path) -> Path:
    sides = rng.choice(((30000, 30000), (2**31 - 1, 1), (9000, 9000), (2**31 - 1, 2**31 - 1), (0, 64), (7, 20000)))
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 6)), 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(bytes(10**6))) + _chunk(b"IEND", b"")
    return put(folder, rng.choice(("clip.png", "clip.mp4")), data)


@shapes.add(ANY)
def apng_says_more_frames(rng: random.Random, folder: Path) -> Path:
    return put(folder, "clip.png", apng((64, 48), rng.choice((1, 2, 9)), said=rng.choice(ODD)))


@shapes.add(BAD, every=2)
def apng_of_many_large_frames(rng: random.Random, folder: Path) -> Path:
    return put(folder, "clip.png", apng((4000, 2300), rng.randrange(1000, 1500)))


@shapes.add(BAD, every=4)
def apng_of_many_tiny_frames(rng: random.Random, folder: Path) -> Path:
    return put(folder, "clip.png", apng((16, 16), 100_000, shown=(11, 1000)))


def gif(side: tuple[int, int], frames: int, delay: int) -> bytes:
    """A GIF whose frames are one pixel each on a canvas of that size, shown for hundredths of a second."""
    head = b"GIF89a" + struct.pack("<HHBBB", *side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    one = b"\x21\xf9\x04\0" + struct.pack("<H", delay) + b"\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    return head + (one + b"\x02\x02\x44\x01\x00") * frames + b";"


@shapes.add(BAD)
def gif_says_it_is_huge(rng: random.Random, folder: Path) -> Path:
    return put(folder, "clip.gif", gif((rng.randrange(9000, 16000), rng.randrange(9000, 20000)), 3, 10))


@shapes.add(ANY, every=3)
def gif_of_100_000_frames(rng: random.Random, folder: Path) -> Path:
    return put(folder, "clip.gif", gif((16, 16), 100_000, rng.choice((0, 1, 2, 65535))))


@shapes.add(BAD)
def webp_says_it_is_huge(rng: random.Random, folder: Path) -> Path:
    side = (16383).to_bytes(3, "little")
    inner = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + side + side
    inner += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    inner += b"ANMF" + struct.pack("<I", 24) + bytes(6) + side + side + b"\x64\0\0\0" + b"VP8L\0\0\0\0"
    return put(folder, "clip.webp", b"RIFF" + struct.pack("<I", 4 + len(inner)) + b"WEBP" + inner)


@lru_cache(maxsize=1)
def _scanned() -> tuple[bytes, bytes]:
    """A large progressive JPEG of one grey up to its last scan, and that scan."""
    done, coded = cv2.imencode(
        ".jpg", np.full((5000, 5000, 3), 90, np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 40]
    )
    assert done
    data = coded.tobytes()
    at = data.rindex(b"\xff\xc4") if data.rindex(b"\xff\xc4") > data.rindex(b"\xff\xda") - 2000 else 0
    last = min(data.rindex(b"\xff\xda"), at or len(data))
    return data[:last], data[last:-2]


@shapes.add(ANY, every=4)
def jpeg_of_many_scans(rng: random.Random, folder: Path) -> Path:
    head, scan = _scanned()
    return put(folder, "clip.jpg", head + scan * rng.randrange(1000, 2000) + b"\xff\xd9")


@shapes.add(BAD)
def one_pixel(rng: random.Random, folder: Path) -> Path:
    ending = rng.choice(("png", "gif", "webp", "jpg", "mp4", "avi"))
    if ending in ("mp4", "avi"):
        path = folder / f"clip.{ending}"
        ffmpeg("-f", "lavfi", "-i", "color=red:s=2x2:r=8:d=1", "-c:v", "mpeg4", str(path))
        return path
    Image.new("RGB", (1, 1)).save(folder / f"clip.{ending}")
    return folder / f"clip.{ending}"


@shapes.add(BAD, every=2)
def large_or_long(rng: random.Random, folder: Path) -> Path:
    path = folder / "clip.mp4"
    large = f"color=red:s={rng.choice(('4352x2304', '4096x3072'))}:r=1:d=1"
    if rng.random() < 0.5:
        ffmpeg("-f", "lavfi", "-i", large, "-c:v", "mpeg4", "-frames:v", "1", str(path))
    else:
        ffmpeg("-f", "lavfi", "-i", "color=red:s=32x32:r=1:d=302", "-c:v", "mpeg4", str(path))
    return path


# --- times


@lru_cache(maxsize=4)
def _tiny_frames(folder: Path) -> bytes:
    one, path = folder / "one.mkv", folder / "many.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=16x16:r=1000:d=1", "-c:v", "mpeg4", str(one))
    ffmpeg("-stream_loop", "99", "-i", str(one), "-c", "copy", str(path))
    data = path.read_bytes()
    one.unlink(), path.unlink()
    return data


@shapes.add(FINE, every=4)
def a_hundred_thousand_frames(rng: random.Random, folder: Path) -> Path:
    return put(folder, "clip.mkv", _tiny_frames(folder.parent))


@shapes.add(ANY)
def times_jump(rng: random.Random, folder: Path) -> Path:
    """Negative, backward, equal and far timestamps, as cut or merged streams have."""
    ending = rng.choice(("mkv", "ts", "nut", "mp4"))
    source = put(folder.parent, "source.mkv", good("mkv", folder.parent))
    path, at = folder / f"clip.{ending}", rng.randrange(1, 15)
    jump = rng.choice((-(10**7), -1000, 0, 10**6, 3 * 10**7))
    times = rng.choice((f"PTS+if(gte(N,{at}),{jump},0)", f"PTS-{rng.choice((500, 10**6))}", "0", f"{at}*1000-PTS"))
    setts = f"setts=pts={times}:dts={rng.choice(('DTS', times))}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-i", str(source), "-map", "0:v"]
    command += ["-c", "copy", "-bsf:v", setts, "-avoid_negative_ts", "disabled", str(path)]
    subprocess.run(command, check=False, capture_output=True, timeout=60)  # some containers refuse some times
    source.unlink()
    path.touch()
    return path


# --- other files in a video's clothes


@shapes.add(BAD)
def names_another_file(rng: random.Random, folder: Path) -> Path:
    """A playlist, a list of parts, subtitles or a drawing that names a file or an address of this machine."""
    secret, port = folder.parent.parent / "canary" / "secret.mp4", _port()
    target = rng.choice((str(secret), f"file://{secret}", f"http://127.0.0.1:{port}/a.mp4", f"tcp://127.0.0.1:{port}"))
    target = rng.choice((target, f"concat:{secret}|{secret}", f"subfile,,start,0,end,9,,:{secret}", f"cache:{target}"))
    svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="64" height="48">'
    told = rng.choice(
        (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
            f'#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-MAP:URI="{target}"\n#EXTINF:2,\n{target}\n',
            f"ffconcat version 1.0\nfile '{target}'\nduration 2\n",
            f"1\n00:00:00,000 --> 00:00:02,000\n<img src='{target}'>\n\n",
            f"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:02.00,,,,,,,{target}\n",
            f'{svg}<image xlink:href="{target}" width="64" height="48"/></svg>',
            f'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "{target}">]>{svg}<text>&x;</text></svg>',
            f'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{target}</BaseURL></Period></MPD>',
            f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
            f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
            f"; mjpeg \n{target}\n",
        )
    )
    ending = rng.choice(("mp4", "mov", "mkv", "m3u8", "webm", "gif", "svg", "srt", "ass", "avi", "ts"))
    mark = rng.choice(("", "", "\ufeff", "\n\n"))
    return put(folder, f"clip.{ending}", mark + told)


@shapes.add(ANY)
def refers_to_another_file(rng: random.Random, folder: Path) -> Path:
    """A MOV whose samples are said to lie in another file, as its data reference tells."""
    secret = str(folder.parent.parent / "canary" / "secret.mp4").encode()
    data = good("mp4", folder.parent)
    own = b"\0\0\0\x0curl \0\0\0\1"
    told = rng.choice((b"url ", b"alis")) + b"\0\0\0\0" + secret + b"\0"
    return put(folder, "clip.mov", data.replace(own, struct.pack(">I", 4 + len(told)) + told))


_listening: list[Any] = []


def _port() -> int:
    """Where the child listens for calls that must not come."""
    return int(_listening[0].getsockname()[1]) if _listening else 9


@shapes.add(BAD)
def sound_alone(rng: random.Random, folder: Path) -> Path:
    path = folder / f"clip.{rng.choice(('mp4', 'mkv', 'ts', 'mov'))}"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", str(path))
    return path


# --- odd, and none the worse


@shapes.add(FINE)
def interlaced(rng: random.Random, folder: Path) -> Path:
    """Two fields a frame, of a bar that moves between them."""
    codec, ending = rng.choice(
        (
            (("libx264", "-flags", "+ilme+ildct", "-qp", "0"), "mp4"),
            (("mpeg2video", "-flags", "+ilme+ildct", "-q:v", "2"), "mpg"),
            (("mpeg2video", "-flags", "+ilme+ildct", "-q:v", "2"), "ts"),
            (("prores_ks", "-flags", "+ilme"), "mov"),
            (("libx264", "-flags", "+ilme+ildct", "-qp", "0"), "mkv"),
            (("mpeg4", "-flags", "+ilme+ildct", "-q:v", "2"), "avi"),
        )
    )
    path, order = folder / f"fields.{ending}", rng.choice(("tff", "bff"))
    bar = "color=black:s=128x96:r=50:d=1,drawbox=x=-16:y=0:w=1:h=1,format=yuv420p"
    moving = "color=white:s=16x96:r=50:d=1"
    joined = f"{bar}[a];{moving}[b];[a][b]overlay=x='mod(n*6,128)',interlace=scan={order}:lowpass=off"
    ffmpeg("-f", "lavfi", "-i", joined, "-c:v", *codec, str(path))
    return path


@shapes.add(FINE)
def odd_picture(rng: random.Random, folder: Path) -> Path:
    mode, ending = rng.choice(
        (
            ("1", "png"),
            ("P", "png"),
            ("LA", "png"),
            ("RGBA", "webp"),
            ("I;16", "png"),
            ("CMYK", "jpg"),
            ("L", "jpg"),
            ("RGBA", "png"),
        )
    )
    path = folder / f"clip.{ending}"
    if mode == "I;16":
        Image.fromarray(_ramp()[..., 0].astype(np.uint16) * 250).save(path)
    else:
        Image.fromarray(_ramp()).convert(mode).save(path)
    return path


@shapes.add(FINE)
def odd_shape(rng: random.Random, folder: Path) -> Path:
    """Odd sides, few frames, slow, quick, turned or with pixels that are not square."""
    path = folder / "clip.mkv"
    sides, rate, count = (
        rng.choice(((17, 19), (333, 16), (640, 36))),
        rng.choice((1, 8, 59.94, 240)),
        rng.choice((4, 9)),
    )
    video = Clip(np.random.default_rng(rng.randrange(99)).integers(0, 255, (count, *sides[::-1], 3), np.uint8), rate)
    write_clip(folder / "made.mp4", video)
    ffmpeg("-i", str(folder / "made.mp4"), "-c", "copy", "-aspect", rng.choice(("4:3", "16:9", "1:1")), str(path))
    return path
