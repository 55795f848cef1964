"""What is written: settings, prompts and links."""

from __future__ import annotations

import html
import json
import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hostile.cases import ANY, BAD, FINE, Shapes, damage
from hostile.clips import EDIT, SOURCE, put, write_disc

from freemask import page
from freemask.cli.edit import asked_settings
from freemask.families.specs import backbones
from freemask.jobs.check import check
from freemask.page import status
from freemask.presets import METHODS, TASKS, load_preset
from freemask.settings import Settings, make_settings

settings, prompts, links = Shapes(), Shapes(), Shapes()
NAMES = [one.name for one in fields(Settings)]
GOOD: dict[str, Any] = {"source": SOURCE, "edit": EDIT, "task": "attribute", "method": "freemask", "steps": 2}
ODD: tuple[Any, ...] = (
    None,
    "",
    " ",
    "x",
    "0",
    "-1",
    "1e400",
    "NaN",
    "Infinity",
    "--help",
    "../../etc/passwd",
    "/etc",
    "~",
    "~nobody/x",
    "a\0b",
    "\ud800",
    "'; DROP TABLE edits; --",
    "{{7*7}}",
    "%s%n",
    "<script>alert(1)</script>",
    "ａ" * 70,
    "x" * 5000,
    0,
    -1,
    1,
    2**31,
    2**64,
    10**300,
    0.5,
    -0.0,
    1e-308,
    1e308,
    True,
    False,
    [],
    {},
    [1],
    [[[]]],
    {"a": 1},
    [1, 2, 3],
    ["128", "128"],
    [128, 128],
    "128x128",
    "0x0",
    "99999x99999",
)


# --- settings.json


def take_settings(path: Path) -> None:
    """The file as the command reads it, and as the page does."""
    shown = page.fill_settings(str(path), ["mini"])
    assert len(shown) == len(page_names())
    read = asked_settings(path, False, {})
    assert read.steps >= 2


def page_names() -> list[str]:
    from freemask.page.fields import NAMES as shown

    return shown[1:]


def written(folder: Path, values: Any, **options: Any) -> Path:
    return put(folder, "settings.json", json.dumps(values, **options))


@settings.add(FINE)
def good_settings(rng: random.Random, folder: Path) -> Path:
    values = GOOD | rng.choice(
        ({}, {"size": [128, 128]}, {"fps": 7.5}, {"tau": 0.3}, {"seed": 2**32 - 1}, {"word": "car"})
    )
    return written(folder, rng.choice((values, {"settings": values, "metrics": {}})), indent=rng.choice((None, 2)))


@settings.add(BAD)
def deep(rng: random.Random, folder: Path) -> Path:
    n, (left, right) = rng.choice((500, 5000, 200_000)), rng.choice((("[", "]"), ('{"a":', "}")))
    inner = left * n + ("1" if left != "[" else "") + right * n
    return put(folder, "settings.json", rng.choice((inner, '{"source":"a","steps":' + inner + "}")))


@settings.add(BAD)
def no_number(rng: random.Random, folder: Path) -> Path:
    name = rng.choice(("steps", "guidance", "fps", "start", "tau", "eta", "seed", "frames", "alpha_self"))
    value = rng.choice(("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400, "9" * 5000, "1" + "0" * 309))
    return put(folder, "settings.json", json.dumps(GOOD)[:-1] + f', "{name}": {value}}}')


@settings.add(BAD)
def unknown_keys(rng: random.Random, folder: Path) -> Path:
    name = rng.choice(
        ("stepz", "__class__", "", "settings", "a" * 50_000, "<img src=x onerror=alert(1)>", "σ", "labels")
    )
    return written(folder, GOOD | {name: rng.choice((1, "x", None))})


@settings.add(ANY)
def wrong_types(rng: random.Random, folder: Path) -> Path:
    changed = {name: rng.choice(ODD) for name in rng.sample(NAMES, rng.choice((1, 1, 3)))}
    return written(folder, GOOD | changed)


@settings.add(ANY)
def other_methods_keys(rng: random.Random, folder: Path) -> Path:
    own = {"null_text_steps": 2, "alpha_temporal": 0.5, "selection": "consensus", "site": "up 3.0", "reweight": 2}
    own |= {"alpha_latent": 0.5, "alpha_self": 0.9, "timestep": 201, "deep_cache": 3}
    asked = {"method": rng.choice(METHODS), "task": rng.choice((*TASKS, "official", "official-style"))}
    return written(folder, GOOD | asked | dict(rng.sample([*own.items()], rng.choice((1, 2, 3)))))


@settings.add(BAD)
def no_settings(rng: random.Random, folder: Path) -> Path:
    told = rng.choice(
        (
            "",
            "null",
            "[]",
            "3",
            '"x"',
            "{",
            '{"settings": 3}',
            '{"settings": null}',
            "\0" * 99,
            "{}",
            '{"settings": [["a", 1]]}',
            "source: a\nedit: b\n",
            "\ufeff{}",
        )
    )
    return put(folder, "settings.json", told)


@settings.add(ANY)
def damaged_settings(rng: random.Random, folder: Path) -> Path:
    return put(folder, "settings.json", damage(rng, json.dumps(GOOD | {"size": [128, 128]}).encode()))


@settings.add(BAD, every=3)
def huge_settings(rng: random.Random, folder: Path) -> Path:
    filler = rng.choice(("[" + "[]," * 10**6 + "[]]", '"' + "x" * 10**7 + '"', "[" + "1," * 10**6 + "1]"))
    return put(folder, "settings.json", json.dumps(GOOD)[:-1] + f', "word": {filler}}}')


@settings.add(ANY)
def masks_elsewhere(rng: random.Random, folder: Path) -> Path:
    where = rng.choice(
        ("../../canary/secret.mp4", "/etc/passwd", "masks.zip", "a\0b", ".", "\\\\host\\share", "x" * 300)
    )
    return written(folder, GOOD | {"masks": where})


# --- prompts


def take_prompts(given: tuple[str, str, str, str, str]) -> None:
    """Two prompts, a task, a word and the folder of a model that knows the language, as they are typed."""
    source, edit, task, word, folder = given
    told, shown = page.follow_prompts(source, edit, task, word, folder, "freemask")
    page.follow_difference(source, edit, task, task)
    assert "\n" not in told["placeholder"] or "\n" in source
    bare = re.sub(r"</?(?:mark|button|div|p|b)(?: [a-z-]+(?:=(?:\"[^\"<>]*\"|[a-z]+))?)*>", "", shown)
    assert "<" not in bare, f"HTML of its own: {bare[:200]}"
    clip = Path(folder).parent / "disc.mp4"
    if not clip.exists():
        write_disc(clip)
    read = make_settings(source=source, edit=edit, task=task, word=word or None, backbone=folder, steps=2, frames=2)
    checked = check(clip, read)
    assert checked.word
    report = {"settings": read.record(checked.word), "metrics": {}, "mask": {"kept": "nothing"}}
    told = status.done(report | {"words": {"word": checked.word, "warnings": []}}, 1.0)
    assert html.escape(checked.word) in told and "<script" not in told


def model(folder: Path) -> str:
    """The folder of a model that knows the language, as far as prompts are checked against it."""
    path = folder.parent / "model"
    for part, config in (("unet", {"sample_size": 8}), ("vae", {"block_out_channels": [8, 8]})):
        (path / part).mkdir(parents=True, exist_ok=True)
        (path / part / "config.json").write_text(json.dumps(config))
    return str(path)


def asked(rng: random.Random, folder: Path, source: str, edit: str, word: str = "") -> tuple[str, ...]:
    return source, edit, rng.choice(TASKS), word, model(folder)


@prompts.add(FINE)
def right_to_left(rng: random.Random, folder: Path) -> Any:
    pairs = (
        ("سيارة حمراء تسير على العشب", "سيارة زرقاء تسير على العشب"),
        ("מכונית אדומה נוסעת על הדשא", "מכונית כחולה נוסעת על הדשא"),
        ("سَيَّارَةٌ حَمْرَاءُ", "سَيَّارَةٌ زَرْقَاءُ"),
        ("a car named \u202eمرحبا\u202c", "a bus named \u202eمرحبا\u202c"),
    )
    return asked(rng, folder, *rng.choice(pairs))


@prompts.add(FINE)
def other_scripts(rng: random.Random, folder: Path) -> Any:
    pairs = (
        ("लाल गाड़ी घास पर", "नीली गाड़ी घास पर", "गाड़ी"),
        ("一辆 红色 的 车", "一辆 蓝色 的 车", "车"),
        ("une voiture rouge\u0301 garée", "une voiture bleue garée", "voiture"),
        ("ein groẞes STRASSE Auto", "ein kleines STRASSE Auto", "Auto"),
        ("รถ สีแดง", "รถ สีน้ำเงิน", "รถ"),
        ("a car 🚗 on grass", "a bus 🚌 on grass", "car"),
        ("İstanbul'da araba", "İstanbul'da otobüs", "araba"),
    )
    return asked(rng, folder, *rng.choice(pairs))


@prompts.add(FINE)
def combining(rng: random.Random, folder: Path) -> Any:
    zalgo = "".join(c + "".join(chr(rng.randrange(0x300, 0x36F)) for _ in range(rng.choice((1, 5)))) for c in "car")
    return asked(rng, folder, f"a red {zalgo} here", f"a blue {zalgo} here")


@prompts.add(FINE)
def markup(rng: random.Random, folder: Path) -> Any:
    told = rng.choice(
        (
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "&lt;b&gt;",
            "</p></div><b>",
            "javascript:alert(1)",
            "{{config}}",
            "${7*7}",
            "<!--",
            "';alert(1)//",
        )
    )
    return asked(rng, folder, f"a red car {told} there", f"a blue car {told} there", "car")


@prompts.add(FINE)
def control_characters(rng: random.Random, folder: Path) -> Any:
    odd = "".join(rng.choice("\x00\x01\x07\x08\x1b\x7f\x85\u200b\u200d\u2028\ufeff\ufffe\r\n\t") for _ in range(9))
    return asked(rng, folder, f"a red{odd} car{odd} there", f"a blue{odd} car there{odd}")


@prompts.add(BAD)
def nothing_to_edit(rng: random.Random, folder: Path) -> Any:
    empty = rng.choice(("", " \n\t", "…!?", "🚗🚗", "\u0301\u0302", "___", "\x00"))
    return asked(rng, folder, *rng.choice(((empty, "a car"), ("a car", empty), (empty, empty), ("A car!", "a CAR"))))


@prompts.add(BAD)
def a_hundred_thousand(rng: random.Random, folder: Path) -> Any:
    """100 kB: one word, many alike, or many of all kinds."""
    long = rng.choice(
        (
            "a" * 100_000,
            "a " * 50_000,
            "car bus " * 12_500,
            "\u0301" * 50_000,
            " " * 100_000 + "car",
            "é" * 50_000,
            " ".join(f"w{rng.randrange(99)}" for _ in range(25_000)),
            "a-" * 50_000,
            "'" * 100_000 + "a",
            "#1 " * 33_000,
        )
    )
    return asked(rng, folder, *rng.choice(((long, "a bus"), ("a red car", long), (long, long + " x"))))


@prompts.add(ANY)
def a_thousand(rng: random.Random, folder: Path) -> Any:
    """As long as may be: what is slow in the number of words shows here."""
    one, other = rng.choice((("a ", "b "), ("a b ", "b a a "), ("car bus ", "bus car "), ("x y z ", "z y x ")))
    return asked(rng, folder, (one * 500)[:999], (other * 500)[:999], rng.choice(("", "a#2", "bus car")))


@prompts.add(ANY)
def odd_word(rng: random.Random, folder: Path) -> Any:
    word = rng.choice(
        (
            "car#0",
            "car#-1",
            "car#2",
            "car#" + "9" * 5000,
            "#",
            "#1",
            "car" + " " * 50_000 + "x",
            "boat",
            "<b>x</b>",
            "car#²",
            "car#٢",
            "red car",
            "car " * 30_000,
            "\u202ecar",
            "CAR",
            "car, the",
        )
    )
    return asked(rng, folder, SOURCE, EDIT, word)


# --- links


def take_links(query: str) -> None:
    """A link's fields are taken or left out, each told of, and nothing else happens."""
    filled = page.follow_link(query, ["mini"])
    assert filled is None or len(filled) == len(page_names())


@links.add(FINE)
def every_parameter_wrong(rng: random.Random, folder: Path) -> str:
    return "?" + "&".join(f"{name}={quote(str(rng.choice(ODD)), errors='replace')}" for name in NAMES)


@links.add(FINE)
def one_parameter_wrong(rng: random.Random, folder: Path) -> str:
    name, value = rng.choice(NAMES), str(rng.choice(ODD))
    return "?" + urlencode(GOOD | {name: value}, errors="replace")


@links.add(FINE)
def parameters_twice(rng: random.Random, folder: Path) -> str:
    return "?" + "&".join(f"{rng.choice(NAMES)}={rng.choice(ODD)}" for _ in range(200))


@links.add(FINE)
def no_query(rng: random.Random, folder: Path) -> str:
    return rng.choice(
        (
            "",
            "?",
            "&&&=",
            "?=&=",
            "source",
            "?source",
            "?%",
            "?%ff%fe=%zz",
            "?" + "a" * 10**5,
            "?source=%00",
            "?source=" + "a+" * 50_000,
            "?edit=" + "%F0%9F%9A%97" * 9000,
            "?steps=%D9%A2",
            "?" + "a=1&" * 20_000,
            "?source=a+car&edit=" + "b+a+" * 20_000,
        )
    )


@links.add(FINE)
def backbones_of_all_kinds(rng: random.Random, folder: Path) -> str:
    names = [one.name for one in backbones()]
    other = (
        "/",
        "~",
        "~root",
        "~nobody-here/x",
        str(folder),
        "../..",
        "owner/model",
        "x" * 300 + "/y",
        "a/b/c",
        "\0",
        "//h/s",
    )
    return "?" + urlencode(GOOD | {"backbone": rng.choice((*names, *other, "x" * 5000))})


@links.add(FINE)
def good_link(rng: random.Random, folder: Path) -> str:
    preset = load_preset("shape")
    return page.fields.link(
        GOOD | {"tau": preset.tau, "size": [128, 128], "backbone": rng.choice(("mini", "zeroscope"))}
    )
