"""Zips of masks: bombs, paths that lead away, locks, and the many ways to save a mask."""

from __future__ import annotations

import random
import struct
import warnings
import zipfile
import zlib
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from hostile.cases import ANY, BAD, FINE, Shapes, damage
from hostile.clips import EDIT, SOURCE, put, write_disc
from PIL import Image

from freemask import page
from freemask.changes import AUTO
from freemask.errors import SettingError
from freemask.jobs.check import check
from freemask.settings import make_settings

shapes = Shapes()
FRAMES = 3
DRAWN = np.zeros((FRAMES, 24, 24), bool)
for k in range(FRAMES):
    DRAWN[k, 4:18, 3 + 2 * k : 13 + 2 * k] = True


def take(path: Path) -> None:
    """The zip as an edit's mask, and as the page tells of it."""
    told = page.own_mask("", "", str(path))
    assert "<" not in told.value
    clip = path.parent.parent / "disc.mp4"
    if not clip.exists():
        write_disc(clip)
    settings = make_settings(source=SOURCE, edit=EDIT, task="attribute", steps=2, frames=FRAMES, masks=path)
    found = check(clip, settings).masks
    assert found is not None
    with suppress(SettingError):  # what is a mask need not be labels
        labels = {"masks": path, "changes": AUTO, "steps": 2, "frames": FRAMES}
        check(clip, make_settings(source=SOURCE, edit="a blue car driving on the snow", **labels))
    if path.name.startswith("drawn"):
        assert (found == DRAWN).all(), "the masks are not what was drawn"


def packed(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", how) as made:
        warnings.simplefilter("ignore")  # names that come twice
        for name, data in files.items():
            made.writestr(name, data)
    return path


def png(picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", picture)[1].tobytes())


def saved(picture: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def good() -> dict[str, bytes]:
    return {f"{i:05d}.png": png(mask.astype(np.uint8) * 255) for i, mask in enumerate(DRAWN)}


@lru_cache(maxsize=4)
def _black(side: int) -> bytes:
    return png(np.zeros((side, side), np.uint8))


def _say(side: tuple[int, int], depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header says that size and whose data is short."""
    head = b"IHDR" + struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))]
    for kind, data in ((b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


# --- as people save masks


@shapes.add(FINE)
def sixteen_bits(rng: random.Random, folder: Path) -> Path:
    top = rng.choice((1, 255, 256, 4095, 65535))
    return packed(folder / "drawn.zip", {f"{i}.png": png(m.astype(np.uint16) * top) for i, m in enumerate(DRAWN)})


@shapes.add(FINE)
def palette(rng: random.Random, folder: Path) -> Path:
    colours = rng.choice(([0, 0, 0, 128, 0, 0], [0, 0, 0, 255, 255, 255], [10, 10, 10, 0, 0, 200]))
    files = {}
    for i, mask in enumerate(DRAWN):
        picture = Image.fromarray(mask.astype(np.uint8), "L").convert("P")
        picture.putdata(mask.astype(np.uint8).ravel().tolist())
        picture.putpalette(colours)
        files[f"{i}.png"] = saved(picture, bits=rng.choice((1, 2, 4, 8)))
    return packed(folder / "drawn.zip", files)


@shapes.add(FINE)
def alpha(rng: random.Random, folder: Path) -> Path:
    """White on black that is opaque, a mask that is the alpha of white, or a grey one with alpha."""
    how, files = rng.choice(("opaque", "white", "grey", "colour")), {}
    for i, mask in enumerate(DRAWN):
        grey = mask.astype(np.uint8) * 255
        full, none = np.full_like(grey, 255), np.zeros_like(grey)
        layers = {
            "opaque": (grey, grey, grey, full),
            "white": (full, full, full, grey),
            "grey": (full, grey),
            "colour": (full, none, none, grey),
        }[how]
        files[f"{i}.png"] = saved(Image.fromarray(np.dstack(layers), "LA" if how == "grey" else "RGBA"))
    return packed(folder / "drawn.zip", files)


@shapes.add(FINE)
def black_and_white(rng: random.Random, folder: Path) -> Path:
    mode, how = rng.choice(("1", "L", "RGB")), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    files = {f"{i}.png": saved(Image.fromarray(m.astype(np.uint8) * 255).convert(mode)) for i, m in enumerate(DRAWN)}
    return packed(folder / "drawn.zip", files, how)


@shapes.add(FINE)
def odd_names(rng: random.Random, folder: Path) -> Path:
    form = rng.choice(("mask².{}.PNG", "masks/frame {}.png", "面具-{}.png", "{}.png", "a/../{}.png", "m{}.v2.png"))
    files = {form.format(i + 8): data for i, data in enumerate(good().values())}  # 8, 9, 10: by number, not by letter
    return packed(folder / "drawn.zip", files | {"__MACOSX/._8.png": b"x", "notes.txt": b"x"})


@shapes.add(FINE)
def one_for_all(rng: random.Random, folder: Path) -> Path:
    return packed(folder / "one.zip", {"a.png": png(DRAWN[0].astype(np.uint8) * rng.choice((1, 128, 255)))})


# --- bombs


@shapes.add(BAD, every=2)
def bomb_of_many_masks(rng: random.Random, folder: Path) -> Path:
    side = rng.choice((1024, 2048))
    return packed(folder / "masks.zip", {f"{i}.png": _black(side) for i in range(rng.randrange(200, 2000))})


@shapes.add(BAD, every=2)
def ten_thousand_entries(rng: random.Random, folder: Path) -> Path:
    return packed(folder / "masks.zip", {f"{i}.png": b"" for i in range(10_000)}, zipfile.ZIP_STORED)


@shapes.add(BAD)
def bomb_of_zeros(rng: random.Random, folder: Path) -> Path:
    return packed(folder / "masks.zip", {f"{i}.png": bytes(10**7) for i in range(FRAMES)})


@shapes.add(BAD)
def entry_lies_about_its_size(rng: random.Random, folder: Path) -> Path:
    data = bytearray(packed(folder / "masks.zip", {f"{i}.png": bytes(10**7) for i in range(FRAMES)}).read_bytes())
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        begin = -1
        while (begin := data.find(mark, begin + 1)) >= 0:
            struct.pack_into("<I", data, begin + at, rng.choice((0, 100, 2**32 - 2)))
    return put(folder, "masks.zip", bytes(data))


@shapes.add(BAD)
def png_says_thousands_of_pixels(rng: random.Random, folder: Path) -> Path:
    side = rng.choice(((30_000, 30_000), (30_000, 1), (2**31 - 1, 2**31 - 1), (0, 0), (1, 2**31)))
    one = _say(side, rng.choice((1, 8, 16)), rng.choice((0, 2, 6)))
    return packed(folder / "masks.zip", {f"{i}.png": one for i in range(FRAMES)})


@shapes.add(ANY)
def largest(rng: random.Random, folder: Path) -> Path:
    """Sixteen bits of four channels at the limit, one for all."""
    one = png(np.full((2048, 2048, 4), rng.choice((0, 65535)), np.uint16))
    return packed(folder / "masks.zip", {"a.png": one})


@shapes.add(BAD)
def zips_in_a_zip(rng: random.Random, folder: Path) -> Path:
    data = packed(folder / "inner.zip", good()).read_bytes()
    return packed(folder / "masks.zip", {rng.choice(("a.zip", "a.png")): data})


# --- paths, links, locks


@shapes.add(ANY)
def traversal(rng: random.Random, folder: Path) -> Path:
    away = rng.choice(
        ("../../evil{}.png", f"{folder.parent.parent}/evil{{}}.png", "..\\..\\evil{}.png", "C:\\evil{}.png")
    )
    return packed(folder / "masks.zip", {away.format(i): data for i, data in enumerate(good().values())})


@shapes.add(BAD)
def links(rng: random.Random, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "masks.zip", "w") as made:
        for i in range(FRAMES):
            link = zipfile.ZipInfo(f"{i}.png")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            made.writestr(link, str(folder.parent.parent / "canary" / "secret.mp4"))
    return folder / "masks.zip"


@shapes.add(BAD)
def locked(rng: random.Random, folder: Path) -> Path:
    data = bytearray(packed(folder / "masks.zip", good()).read_bytes())
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        begin = -1
        while (begin := data.find(mark, begin + 1)) >= 0:
            data[begin + at] |= rng.choice((0x01, 0x41))
    return put(folder, "masks.zip", bytes(data))


# --- broken


@shapes.add(ANY)
def damaged(rng: random.Random, folder: Path) -> Path:
    return put(folder, "masks.zip", damage(rng, packed(folder / "good.zip", good()).read_bytes()))


@shapes.add(ANY)
def damaged_png(rng: random.Random, folder: Path) -> Path:
    return packed(folder / "masks.zip", {name: damage(rng, data, first=8) for name, data in good().items()})


@shapes.add(BAD)
def unlike_sizes(rng: random.Random, folder: Path) -> Path:
    sides = rng.sample((8, 16, 24, 32, 500), FRAMES)
    return packed(folder / "masks.zip", {f"{s}.png": png(np.full((s, s), 255, np.uint8)) for s in sides})


@shapes.add(BAD)
def wrong_count(rng: random.Random, folder: Path) -> Path:
    files = {f"{i}.png": data for i, data in enumerate([*good().values()] * 2)}
    count = rng.choice((0, 2, 4))
    return packed(folder / "masks.zip", dict([*files.items()][:count]))


@shapes.add(BAD)
def other_shape(rng: random.Random, folder: Path) -> Path:
    return packed(folder / "masks.zip", {"a.png": png(np.full(rng.choice(((8, 64), (64, 8))), 255, np.uint8))})


@shapes.add(BAD)
def no_zip(rng: random.Random, folder: Path) -> Path:
    data = rng.choice((b"", b"PK\5\6" + bytes(18), b"Rar!\x1a\x07\x00", b"no zip", _black(64), b"\x1f\x8b" + bytes(99)))
    return put(folder, "masks.zip", data)


@shapes.add(BAD)
def unknown_compression(rng: random.Random, folder: Path) -> Path:
    data = bytearray(packed(folder / "masks.zip", good()).read_bytes())
    for mark, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        begin = -1
        while (begin := data.find(mark, begin + 1)) >= 0:
            struct.pack_into("<H", data, begin + at, rng.choice((9, 12, 14, 93, 99)))
    return put(folder, "masks.zip", bytes(data))
