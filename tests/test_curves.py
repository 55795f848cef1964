"""The curves of a word's maps: right values, and the table, the PDF and the notebook cell that tell them."""

import csv
import io
import json

import numpy as np
import pytest

from freemask.clips.video import Clip, write_clip
from freemask.errors import MaskError
from freemask.jobs.run import run_steps
from freemask.masks.curves import FIGURES, map_curves
from freemask.pictures.curves import curves_csv, notebook_cell, save_word_curves, word_curves_figure
from freemask.pictures.word_maps import read_index, read_maps
from freemask.settings import make_settings
from freemask.steps import finish


def test_figures_of_a_square_that_moves():
    """Two columns of 4 × 4 light up, then the next two: area ½, half of the picture changes, the centre moves by ¼."""
    soft = np.zeros((2, 4, 4), np.float32)
    soft[0, :, :2] = soft[1, :, 1:3] = 0.2
    mask = np.zeros((2, 4, 4), bool)
    mask[:, :, :2] = True
    told = map_curves({(1, "a"): soft, (9, "a"): np.full_like(soft, 0.1)}, mask=mask)["a"]
    assert set(told) == set(FIGURES)
    values = {name: one[0] for name, one in told.items()}
    assert values["area"] == values["flicker"] == 0.5 and values["y"] == pytest.approx(0.5)
    assert values["x"] == pytest.approx((0.25 + 0.5) / 2) and values["iou"] == pytest.approx((1 + 1 / 3) / 2)
    assert values["entropy"] == pytest.approx(np.log(8) / np.log(16))
    flat = {name: one[1] for name, one in told.items()}
    assert flat["entropy"] == pytest.approx(1) and np.isnan([flat["area"], flat["iou"], flat["flicker"]]).all()
    zero = map_curves({(1, "a"): np.zeros_like(soft)})["a"]
    assert all(np.isnan(one).all() for one in zero.values())


@pytest.fixture(scope="module")
def edit(tmp_path_factory):
    """The folder, report and clip of an edit in three steps."""
    folder = tmp_path_factory.mktemp("curves")
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    write_clip(folder / "it's a clip.mp4", Clip(frames, 8.0))
    settings = make_settings(source="a red car", edit="a red bus", task="shape", steps=3, frames=2, size=(32, 32))
    finish(run_steps(folder / "it's a clip.mp4", settings, folder / "out"))
    return folder, json.loads((folder / "out" / "report.json").read_text())


def test_the_files_tell_every_layer_and_timestep(edit, tmp_path):
    folder, report = edit
    index, maps = read_index(folder / "out"), read_maps(folder / "out", "car")
    curves, timesteps = map_curves(maps), index["timesteps"]
    site = index["sites"][2]["name"]
    rows = list(csv.DictReader(io.StringIO(curves_csv(curves, timesteps, 'a "car"'))))
    assert len(rows) == len(index["sites"]) * 3 and {row["word"] for row in rows} == {'a "car"'}
    for row in rows:
        for name in FIGURES:
            value = curves[row["layer"]][name][timesteps.index(int(row["timestep"]))]
            assert row[name] == "" if np.isnan(value) else float(row[name]) == pytest.approx(value, rel=1e-5)
    save_word_curves(tmp_path / "curves.pdf", curves, timesteps, site, FIGURES, "“car”")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    picture = word_curves_figure(curves, timesteps, site, FIGURES)
    assert picture.shape[2] == 3 and picture.std() > 5
    with pytest.raises(MaskError, match="no map of 'dog'"):
        read_maps(folder / "out", "dog")


def test_the_notebook_cell_draws_the_curves_that_the_page_shows(edit, monkeypatch):
    import matplotlib.pyplot as plt

    folder, report = edit
    site = read_index(folder / "out")["sites"][1]["name"]
    monkeypatch.chdir(folder)
    told: dict = {}
    exec(notebook_cell(report, "it's a clip.mp4", "car", site, 0.3), told)
    plt.close("all")
    shown = map_curves(read_maps(folder / "out", "car"), tau=0.3)[site]
    for name in ("entropy", "x", "y"):
        np.testing.assert_allclose(told["curves"][name], shown[name], atol=0.01)  # files hold 8 bits of each map
