"""200 hostile files and requests, and an edit after a damaged inversion: each ends as it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hostile.cases import rng_of
from hostile.runner import SECONDS, Told, cases, run, table
from tiny import write_disc

from freemask.clips.video import read_clip
from freemask.jobs.run import run_steps
from freemask.settings import make_settings
from freemask.steps import finish

COUNT = 200


@pytest.fixture(scope="module")
def found() -> list[Told]:
    return list(run(cases(COUNT), seed=0))


def test_every_case_ends_as_it_should(found: list[Told]) -> None:
    wrong = [f"{one.kind}/{one.index} {one.shape}: {one.became}: {one.wrong}" for one in found if one.wrong]
    assert not wrong, "\n".join([*wrong, table(found)])
    assert len(found) > 0.95 * COUNT and {"accepted", "ClipError", "SettingError"} <= {one.became for one in found}


def test_none_takes_long(found: list[Told]) -> None:
    assert not [one for one in found if one.cpu > SECONDS]


def test_an_edit_after_a_damaged_inversion_is_the_same(tmp_path: Path) -> None:
    """The inversion is made anew, and the next good edit works."""
    clip, kept = write_disc(tmp_path / "disc.mp4"), tmp_path / "kept"
    asked = make_settings(source="a red car", edit="a blue car", task="attribute", steps=2, frames=2)

    def edit(name: str) -> tuple[str, np.ndarray]:
        report = finish(run_steps(clip, asked, tmp_path / name, kept=kept))
        return report["inversion"], read_clip(tmp_path / name / "edited.mp4", frames=2).frames

    made, first = edit("first")
    files = list(kept.glob("*.safetensors"))
    assert files and made == "made"
    for file in files:
        data, rng = bytearray(file.read_bytes()), rng_of(0, "edit", 0)
        data[rng.randrange(len(data) // 2, len(data))] ^= 0x40
        file.write_bytes(data)
    again, second = edit("second")
    assert again == "made" and np.array_equal(first, second)
    third, last = edit("third")
    assert third.startswith("kept") and np.array_equal(first, last)
