"""Calibration: a codebook from clips with known masks, resumed where it stopped; what cannot be used is named."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from freemask.bench import Sample, calibrate_steps, davis_samples, example_maps, toyworld_samples
from freemask.edit import finish
from freemask.errors import ClipError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "clips"
OPTIONS = {"steps": 2, "frames": 2}


def write_clip_folder(folder: Path, *, size: int = 48, mask_size: int | None = None, filled: bool = True) -> Path:
    for kind in ("frames", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(3):
        side = mask_size or size
        mask = np.zeros((side, side), np.uint8)
        if filled:
            mask[side // 4 : side // 2, side // 4 + 4 * i : side // 2 + 4 * i] = 255
        cv2.imwrite(str(folder / "masks" / f"{i:05d}.png"), mask)
        cv2.imwrite(str(folder / "frames" / f"{i:05d}.png"), np.full((size, size, 3), 40 * i, np.uint8))
    (folder / "prompt.yaml").write_text("prompt: a car driving\nword: car\n")
    return folder


def calibrate(editor, samples, part):
    return finish(calibrate_steps(editor, samples, dataset="test", part=part, **OPTIONS))


def test_a_codebook_of_rendered_scenes(editor, tmp_path):
    samples = toyworld_samples(2)
    book = calibrate(editor, samples, tmp_path / "book.part")
    assert [clip.name for clip in book.clips] == [sample.name for sample in samples]
    assert np.array(book.iou).shape == (len(book.timesteps), len(book.sites)) == (2, len(book.lmmc))
    assert book.lmmc[book.sites.index(book.site)] == min(book.lmmc)
    assert book.tmmc[book.timesteps.index(book.timestep)] == min(book.tmmc)
    frame, maps = example_maps(editor, samples[0], **OPTIONS)
    assert frame.shape == (32, 32, 3) and list(maps) == list(book.sites)
    assert all(len(soft) == 2 for soft in maps.values())


def test_an_interrupted_run_goes_on_where_it_stopped(editor, tmp_path):
    part = tmp_path / "book.part"
    samples = toyworld_samples(3)
    whole = calibrate(editor, samples, part)
    kept = part.read_text().splitlines(keepends=True)
    part.write_text(kept[0] + kept[1][:20])  # the second line was cut off in writing
    loaded = []

    def counted(sample: Sample) -> Sample:
        return Sample(sample.name, lambda *given: loaded.append(sample.name) or sample.load(*given))

    again = calibrate(editor, [counted(sample) for sample in samples], part)
    assert loaded == [sample.name for sample in samples[1:]]
    np.testing.assert_allclose(again.iou, whole.iou, atol=1e-4)


def test_a_folder_of_clips_and_what_is_wrong_with_some(editor, tmp_path):
    write_clip_folder(tmp_path / "good")
    write_clip_folder(tmp_path / "empty", filled=False)
    write_clip_folder(tmp_path / "unequal", mask_size=40)
    (write_clip_folder(tmp_path / "broken") / "frames" / "00001.png").write_bytes(b"nothing")
    (write_clip_folder(tmp_path / "silent") / "prompt.yaml").unlink()
    (write_clip_folder(tmp_path / "wordless") / "prompt.yaml").write_text("prompt: a car\nword: boat\n")
    book = calibrate(editor, davis_samples(tmp_path), tmp_path / "book.part")
    assert [clip.name for clip in book.clips] == ["good"]
    told = "\n".join(book.skipped)
    for name, reason in [
        ("empty", "empty"),
        ("unequal", "unequal"),
        ("broken", "00001.png"),
        ("silent", "prompt.yaml"),
        ("wordless", "boat"),
    ]:
        assert any(line.startswith(f"{name}: ") and reason in line for line in book.skipped), told
    json.dumps(book.skipped)


def test_nothing_to_measure_is_an_error(editor, tmp_path):
    with pytest.raises(ClipError, match="check the path"):
        davis_samples(tmp_path / "none")
    with pytest.raises(ClipError, match="holds no clips"):
        davis_samples(tmp_path)
    write_clip_folder(tmp_path / "empty", filled=False)
    with pytest.raises(ClipError, match="The masks are empty"):
        calibrate(editor, davis_samples(tmp_path), tmp_path / "book.part")


def test_a_real_clip_with_known_masks(editor, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the shared clips are not here")
    book = calibrate(editor, davis_samples(SHARED / "bear"), tmp_path / "book.part")
    assert [clip.name for clip in book.clips] == ["bear"] and book.clips[0].best_iou > 0
