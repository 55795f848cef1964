"""The shipped backbone on a shipped clip, through the command line and from Python, and every refusal."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from tiny import to_bins, write_disc, write_noise
from typer.testing import CliRunner

from freemask import Clip, write_clip
from freemask.cli import app
from freemask.clips.video import probe, read_clip
from freemask.errors import MemoryShortage, PromptError, SettingError
from freemask.families.specs import usual_deep_cache
from freemask.families.unet3d import UNet3D
from freemask.jobs.extras import make_extra
from freemask.jobs.files import read_videos, save_edit
from freemask.jobs.metrics import psnr
from freemask.jobs.run import run_steps
from freemask.jobs.verdict import LIKE, judged
from freemask.pictures.sheets import save_png
from freemask.settings import EXTRAS, Settings, examples, make_settings, read_settings
from freemask.steps import Step, finish

ROOT = Path(__file__).resolve().parent.parent
CAR = examples()[0]
SHAPE = replace(CAR, settings=replace(CAR.settings, edit="a red bus driving on the grass", task="shape"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Four frames of a red car that becomes a bus, in two steps."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "-m", "freemask", "edit", SHAPE.clip, "--source", SHAPE.settings.source]
    command += ["--edit", SHAPE.settings.edit, "--task", "shape", "--steps", "2", "--frames", "4"]
    # as many threads as the tests' own process: sums in another order would round otherwise
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [*map(str, command), "--out", out], cwd=ROOT, capture_output=True, text=True, check=True, env=env
    )
    return out, json.loads(run.stdout.splitlines()[-1]), run.stderr


def test_every_file_is_written(done):
    out, report, log = done
    assert json.loads((out / "report.json").read_text()) == report
    assert "invert" in log and "ETA" in log
    for name in ("source", "edited", "reconstruction"):
        info = probe(out / f"{name}.mp4")
        assert (info.width, info.height, info.codec) == (128, 128, "h264")
    assert probe(out / "comparison.mp4").width == 384
    assert (out / "masks.png").stat().st_size > 1000
    assert (out / "masks.pdf").stat().st_size > 1000
    assert probe(out / "edited.gif").codec == "gif"
    assert b"Made with AI: FreeMask" in (out / "edited.mp4").read_bytes()
    with zipfile.ZipFile(out / "masks.zip") as packed:
        assert packed.namelist() == [f"{i:05d}.png" for i in range(4)]


def test_the_report_accounts_for_the_run(done):
    _, report, _ = done
    assert report["unet"]["invert"] == {"forwards": 2, "rows": 2, "backwards": 0}
    assert report["unet"]["reconstruct"] == {"forwards": 2, "rows": 2, "backwards": 0}
    assert report["null_text"] is None and "null-text" not in report["unet"].keys() | report["seconds"].keys()
    assert 0 <= report["metrics"]["frame_accuracy"] <= 1 and -1 <= report["metrics"]["clip"] <= 1
    assert report["unet"]["edit"] == {"forwards": 2, "rows": 4, "backwards": 0} and not report["memory"]["one_row"]
    assert report["deep_cache"] == usual_deep_cache("mini")
    assert report["memory"]["features"] == "store"  # what fits by default, so that no third row replays the source
    assert report["words"]["word"] == "car" and report["words"]["changed"] == ["bus"]
    assert report["mask"]["timestep"] == "every" and report["mask"]["origin"] == "measured"
    assert 0 < report["mask"]["area"] < 1
    assert set(report["seconds"]) >= {"encode", "invert", "reconstruct", "edit", "decode", "write", "shown", "total"}
    assert report["seconds"]["shown"] < report["seconds"]["total"] - report["seconds"]["reconstruct"]
    figures = {"clip", "clip_temporal", "frame_accuracy", "toy_likeness"}
    assert report["metrics"].keys() == {"reconstruction_psnr", "background_psnr"} | figures
    assert report["metrics"]["toy_likeness"] > LIKE


def test_the_command_tells_the_verdict(done, tmp_path):
    _, report, log = done
    assert report["verdict"] == asdict(judged(report["metrics"]))
    told = " ".join([f"Verdict: {report['verdict']['level']}.", *report["verdict"]["sentences"]])
    assert told in log and "Warning" not in log
    command = ["edit", str(write_noise(tmp_path / "noise.mp4")), "--source", "a red car", "--edit", "a blue car"]
    run = CliRunner().invoke(app, [*command, "--steps", "2", "--frames", "1", "--out", str(tmp_path / "out")])
    assert run.exit_code == 0 and "Warning: The clip is not like the toy world" in run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["verdict"]["level"] != "good"


def test_a_still_is_edited_as_its_one_frame(tmp_path):
    save_png(tmp_path / "still.png", read_clip(SHAPE.clip, frames=1).frames[0])
    settings = replace(SHAPE.settings, steps=2, frames=8, start=0.5)
    report = finish(run_steps(tmp_path / "still.png", settings, tmp_path / "out"))
    assert (report["settings"]["frames"], report["clip"]["frames"], report["settings"]["start"]) == (1, 1, 0)
    with Image.open(tmp_path / "out" / "edited.png") as written:
        shown = np.asarray(written)
        assert written.size == (128, 128) and written.text["Comment"].startswith("Made with AI")
    assert psnr(read_clip(tmp_path / "out" / "edited.mp4", frames=1).frames[0], shown) > 25
    assert probe(make_extra(tmp_path / "out", "comparison.mp4")).still
    with zipfile.ZipFile(tmp_path / "out" / "masks.zip") as packed:
        assert packed.namelist() == ["00000.png"]


def test_a_long_clip_keeps_its_rate_and_duration(tmp_path):
    """Twice as many frames as mini sees at once, in three spans of eight."""
    write_disc(tmp_path / "disc.mp4", frames=16, fps=12.0)
    settings = replace(QUICK, frames=16, fps=12.0)
    report = finish(run_steps(tmp_path / "disc.mp4", settings, tmp_path / "out"))
    info = probe(tmp_path / "out" / "edited.mp4")
    assert info.fps == pytest.approx(12, abs=0.01) and info.duration == pytest.approx(16 / 12, abs=0.05)
    assert report["unet"]["invert"] == {"forwards": 4, "rows": 6, "backwards": 0}
    assert np.load(make_extra(tmp_path / "out", "words.npz"))["mask"].shape[0] == 16


def test_its_settings_make_the_same_edit_again(done, tmp_path):
    out, report, _ = done
    command = ["edit", str(SHAPE.clip), "--settings", str(out / "settings.json"), "--out"]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "same")]).exit_code == 0
    assert (tmp_path / "same" / "edited.mp4").read_bytes() == (out / "edited.mp4").read_bytes()
    changed = CliRunner().invoke(app, [*command, str(tmp_path / "other"), "--frames", "1"])
    told = json.loads(changed.stdout.splitlines()[-1])["settings"]
    assert told == report["settings"] | {"frames": 1}
    (tmp_path / "bad.json").write_text("[1]")
    bad = CliRunner().invoke(app, [*command[:3], str(tmp_path / "bad.json"), "--out", str(tmp_path / "no")])
    assert bad.exit_code == 2 and "holds no settings" in bad.stderr


@pytest.mark.numeric
def test_null_text_is_kept_with_the_inversion(tmp_path, pipeline):
    """Stage 1 of VideoDirector: its files, figures and time, and a second edit that begins after it, as does one whose
    first was cancelled there."""
    settings = replace(QUICK, backbone=str(pipeline), method="videodirector", null_text_steps=1)
    kept = tmp_path / "kept"
    first = run_steps(SHAPE.clip, settings, tmp_path / "cancelled", kept=kept)
    next(step for step in first if step.stage == "edit")
    first.close()
    inversion, made = sorted(kept.iterdir(), key=lambda file: len(file.name))
    assert made.name.startswith(f"{inversion.stem}-") and made.suffix == ".safetensors"
    again = finish(run_steps(SHAPE.clip, settings, tmp_path / "again", kept=kept))
    alone = finish(run_steps(SHAPE.clip, settings, tmp_path / "alone"))
    assert again["null_text"]["made"].startswith("kept") and "null-text" not in again["unet"]
    assert alone["null_text"]["made"] == "made" and alone["seconds"]["null-text"] > 0
    # at each of two levels: two forwards of STDG, the prompt's, and one before and one after the iteration
    assert alone["unet"]["null-text"] == {"forwards": 10, "rows": 10, "backwards": 4}
    assert alone["unet"]["edit"]["backwards"] == 2 and alone["deep_cache"] == 1
    assert alone["metrics"] == again["metrics"] and alone["metrics"]["guided_psnr"] > 10
    assert again["null_text"]["distances"] == alone["null_text"]["distances"]
    assert [len(row) for row in alone["null_text"]["distances"]] == [2, 2]
    for name in ("edited.mp4", "guided.mp4", "null-text.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    made.write_bytes(made.read_bytes()[:-9])  # damaged on disk, it is made anew
    anew = finish(run_steps(SHAPE.clip, settings, tmp_path / "anew", kept=kept))
    assert anew["null_text"]["made"] == "made" and anew["inversion"].startswith("kept")
    inversion.write_bytes(b"no inversion")
    assert finish(run_steps(SHAPE.clip, settings, tmp_path / "all", kept=kept))["metrics"] == alone["metrics"]
    fast = finish(run_steps(SHAPE.clip, replace(settings, null_text_steps=0), tmp_path / "fast", kept=kept))
    assert fast["null_text"] is None and not (tmp_path / "fast" / "guided.mp4").exists()


@pytest.mark.parametrize("prompt", ["source", "edit"])
def test_a_prompt_that_the_model_cannot_read_is_refused_before_the_inversion(tmp_path, pipeline, prompt):
    long = f"{getattr(QUICK, prompt)} {'car ' * 20}"
    stages = []
    with pytest.raises(PromptError, match="is longer than the 22 tokens that .* reads: shorten it"):
        finish(
            run_steps(SHAPE.clip, replace(QUICK, backbone=str(pipeline), **{prompt: long}), tmp_path / "out"),
            lambda step: stages.append(step.stage),
        )
    assert set(stages) == {"load"}


@pytest.mark.numeric
def test_a_second_edit_of_a_clip_begins_at_denoising(tmp_path, pipeline):
    """Also where the first was cancelled after its inversion. A kept inversion has no features: what is compared with
    its edit to the bit replays the source too, in the same batch shapes."""
    settings = replace(QUICK, backbone=str(pipeline), features="replay")
    kept = tmp_path / "kept"
    first = run_steps(SHAPE.clip, settings, tmp_path / "cancelled", kept=kept)
    next(step for step in first if step.stage == "edit")
    first.close()
    assert len(list(kept.iterdir())) == 1 and not (tmp_path / "cancelled").exists()
    second = finish(run_steps(SHAPE.clip, replace(settings, guidance=5.0), tmp_path / "second", kept=kept))
    assert second["unet"]["invert"]["forwards"] == 0 and second["unet"]["reconstruct"]["forwards"] == 2
    assert second["unet"]["edit"]["forwards"] == 2 and second["inversion"].startswith("kept")
    third = finish(run_steps(SHAPE.clip, settings, tmp_path / "third", kept=kept))
    assert third["unet"]["invert"]["forwards"] == third["unet"]["reconstruct"]["forwards"] == 0
    assert third["metrics"]["reconstruction_psnr"] == second["metrics"]["reconstruction_psnr"]
    alone = finish(run_steps(SHAPE.clip, replace(settings, guidance=5.0), tmp_path / "alone"))
    assert alone["inversion"] == "made" and alone["metrics"] == second["metrics"]
    for name in ("edited", "reconstruction"):
        assert (tmp_path / "second" / f"{name}.mp4").read_bytes() == (tmp_path / "alone" / f"{name}.mp4").read_bytes()
    other = replace(settings, source=settings.source.replace("red ", ""))
    assert finish(run_steps(SHAPE.clip, other, tmp_path / "other", kept=kept))["inversion"] == "made"
    solved = finish(run_steps(SHAPE.clip, replace(settings, solver="dpm"), tmp_path / "solved", kept=kept))
    assert solved["inversion"] == "made" and solved["unet"]["invert"]["forwards"] == 3
    again = finish(run_steps(SHAPE.clip, replace(settings, solver="dpm"), tmp_path / "solved again", kept=kept))
    assert again["inversion"].startswith("kept") and again["metrics"] == solved["metrics"]
    stored = replace(settings, features="store")
    assert finish(run_steps(SHAPE.clip, stored, tmp_path / "fourth", kept=kept))["inversion"] == "made"


@pytest.mark.numeric
def test_a_second_edit_in_the_same_process_replays_nothing(tmp_path, written):
    """The features of the last inversion stay in RAM; another clip's inversion lets them go."""
    settings, kept = replace(QUICK, features="auto"), tmp_path / "kept"
    run = lambda name, settings: finish(run_steps(SHAPE.clip, settings, tmp_path / name, kept=kept))  # noqa: E731
    assert [run(name, settings)["unet"]["edit"]["rows"] for name in ("first", "second")] == [4, 4]
    assert np.array_equal(written[tmp_path / "first"], written[tmp_path / "second"])
    other = replace(settings, source=settings.source.replace("red ", ""))
    assert run("other", other)["unet"]["edit"]["rows"] == 4
    replayed = run("replayed", settings)
    assert (replayed["unet"]["edit"]["rows"], replayed["memory"]["features"]) == (5, "replay")
    assert psnr(written[tmp_path / "replayed"], written[tmp_path / "first"]) >= ALIKE


def test_an_edit_is_shown_before_its_reconstruction_and_stands_without_it(tmp_path, monkeypatch):
    steps = run_steps(SHAPE.clip, QUICK, tmp_path)
    shown = next(step.result for step in steps if step.result)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"source.mp4", "edited.mp4", "masks.zip", "words", "report.json", "settings.json"}
    assert shown["metrics"] == {} and shown["verdict"] is None and shown["words"]["word"] == "car"
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(shown))
    short_of_memory(monkeypatch, lambda n: False)
    report = finish(steps)
    assert report["metrics"]["reconstruction_psnr"] is None and report["metrics"]["background_psnr"] > 10
    assert [told for told in report["words"]["warnings"] if told.startswith("Memory ran out for the reconstruction")]
    assert report["verdict"]["level"] and not (tmp_path / "reconstruction.mp4").exists()


@pytest.mark.numeric
def test_every_layer_of_every_step_where_it_is_asked_for(tmp_path, written):
    for every in (1, 2, None):
        report = finish(run_steps(SHAPE.clip, replace(QUICK, deep_cache=every), tmp_path / str(every)))
        assert report["deep_cache"] == (every or usual_deep_cache("mini"))
    drawn = [written[tmp_path / name] for name in ("1", "2", "None")]
    assert (drawn[0] != drawn[1]).any() and np.array_equal(drawn[1], drawn[2])  # of two steps the second takes


def test_other_files_are_made_when_they_are_asked_for(plain, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(plain[0], out)
    assert not {*EXTRAS} & {path.name for path in out.iterdir()}
    made = make_extra(out, "comparison.mp4", tmp_path)  # the folder may be another
    assert (made, probe(made).width) == (tmp_path / "comparison.mp4", 3 * 64) and made.name not in os.listdir(out)
    with pytest.raises(SettingError, match="did you mean 'edited.gif'"):
        make_extra(out, "edit.gif")
    (out / "reconstruction.mp4").unlink()
    with pytest.raises(SettingError, match="gone or damaged: run the edit again"):
        make_extra(out, "comparison.mp4")
    (out / "edited.gif").write_bytes(b"there already")
    assert make_extra(out, "edited.gif").read_bytes() == b"there already"


def short_of_memory(monkeypatch, fits):
    """Forwards and decodings for which `fits` (rows or frames) is false find no memory."""
    predict, decode = UNet3D.predict, AutoencoderTiny.decode

    def scarce(work):
        def run(self, x, *rest, **options):
            if not fits(len(x)):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return work(self, x, *rest, **options)

        return run

    monkeypatch.setattr(UNet3D, "predict", scarce(predict))
    monkeypatch.setattr(AutoencoderTiny, "decode", scarce(decode))


QUICK = make_settings(
    source=SHAPE.settings.source, edit=SHAPE.settings.edit, task="shape", steps=2, frames=2, size=(64, 64)
)


ALIKE = 35  # dB between edits of other batch shapes: 45 and more is usual, other kernels round otherwise


@pytest.fixture
def written(monkeypatch):
    """The frames of each edit as they were drawn, by its folder: an encoder would add errors of its own."""
    return watch_files(monkeypatch)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder, the report and the drawn frames of a quick edit to which nothing happens."""
    out = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        frames = watch_files(patch)
        return out, finish(run_steps(SHAPE.clip, QUICK, out)), frames[out]


def watch_files(patch):
    frames = {}

    def save(out, trace, edited, result, **options):
        frames[out] = result.frames
        frames[out, "plan"], frames[out, "source"] = edited.plan, trace.clip.frames
        save_edit(out, trace, edited, result, **options)

    patch.setattr("freemask.jobs.stages.save_edit", save)
    return frames


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("features", "rows", "used", "said"),
    [("auto", 2, ["store", False], 0), ("replay", 2, ["replay", True], 1), ("store", 1, ["replay", True], 2)],
)
def test_an_edit_that_does_not_fit_goes_on_in_a_more_frugal_way(
    tmp_path, monkeypatch, plain, written, features, rows, used, said
):
    _, report, frames = plain
    assert not [told for told in report["words"]["warnings"] if "emory" in told]
    short_of_memory(monkeypatch, lambda n: n <= rows)
    report = finish(run_steps(SHAPE.clip, replace(QUICK, features=features), tmp_path / "short"))
    assert [report["memory"]["features"], report["memory"]["one_row"]] == used
    assert report["unet"]["invert"]["forwards"] == 2
    warned = [told for told in report["words"]["warnings"] if told.startswith("Memory ran out")]
    assert len(warned) == said
    assert psnr(written[tmp_path / "short"], frames) >= ALIKE


@pytest.mark.parametrize(("name", "kept"), [("shape", "background"), ("place", "object"), ("style", "nothing")])
def test_the_figure_of_what_is_kept_is_of_the_kept_pixels(tmp_path, written, name, kept):
    """Of those outside the mask where the object is edited, inside it where a place is, of all under a style."""
    settings = replace(QUICK, task=name, word="car")
    report = finish(run_steps(SHAPE.clip, settings, tmp_path))
    plan = written[tmp_path, "plan"]
    source, edited = read_videos(tmp_path, "source", "edited", frames=2, fps=8)
    keep = {"background": ~plan.shown, "object": plan.shown, "nothing": None}[kept]
    assert report["mask"]["kept"] == kept
    figure = psnr(edited, source, keep=keep)
    assert report["metrics"]["background_psnr"] == pytest.approx(figure, abs=1e-3)
    if kept == "nothing":
        assert not plan.shown.any()
        return
    assert 0 < plan.area < 1
    others = [psnr(edited, source, keep=other) for other in (plan.shown, ~plan.shown)]
    assert abs(others[0] - others[1]) > 0.1, "the two sides must differ for this to tell them apart"


def test_where_nothing_fits_the_inversion_is_kept(tmp_path, monkeypatch):
    kept, calls = tmp_path / "kept", []
    short_of_memory(monkeypatch, lambda n: len(calls) < 3 and not calls.append(n))
    with pytest.raises(MemoryShortage, match="smaller size"):
        finish(run_steps(SHAPE.clip, QUICK, tmp_path / "out", kept=kept))
    assert len(list(kept.glob("inversion-*.safetensors"))) == 1
    monkeypatch.undo()
    report = finish(run_steps(SHAPE.clip, QUICK, tmp_path / "out", kept=kept))
    assert report["unet"]["invert"]["forwards"] == 0 and report["memory"]["features"] == "replay"


@pytest.mark.numeric
def test_the_least_memory_gives_the_same_edit(tmp_path, written):
    settings = replace(QUICK, features="replay")
    for frugal in (False, True):
        out = tmp_path / str(frugal)
        report = finish(run_steps(SHAPE.clip, replace(settings, low_vram=frugal), out))
    assert report["memory"]["one_row"] and report["unet"]["edit"]["forwards"] == report["unet"]["edit"]["rows"]
    assert psnr(written[tmp_path / "True"], written[tmp_path / "False"]) >= ALIKE


def test_the_peak_is_as_expected(done):
    memory = done[1]["memory"]
    assert memory["expected_mib"] == pytest.approx(memory["peak_mib"], rel=0.15)


def test_every_setting_is_an_option():
    told = CliRunner().invoke(app, ["edit", "--help"], env={"COLUMNS": "200"}).output
    assert not [name for name in Settings.told() if f"--{name.replace('_', '-')} " not in told]


def test_fast_sets_what_is_not_given(monkeypatch, tmp_path):
    asked = []

    def stop(clip, settings, *rest, **options):
        asked.append((settings.steps, settings.solver))
        raise SettingError("far enough")

    monkeypatch.setattr("freemask.jobs.check.check", stop)
    (tmp_path / "settings.json").write_text(json.dumps({"source": "a", "edit": "b", "steps": 40}))
    command = ["edit", str(SHAPE.clip), "--settings", str(tmp_path / "settings.json"), "--out", str(tmp_path)]
    for more in ([], ["--fast"], ["--fast", "--steps", "8"], ["--steps", "8"]):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 2
    assert asked == [(40, "ddim"), (15, "dpm"), (8, "dpm"), (8, "ddim")]


@pytest.mark.parametrize(
    ("options", "task", "guidance"),
    [
        (["--edit", "a blue bus driving on the grass"], "shape", 3.0),
        (["--edit", "a red car driving on the snow"], "place", 3.0),
        (["--edit", "a cat in the night", "--guidance", "6"], "style", 6.0),  # unclear
        (["--edit", "a red bus driving on the grass", "--task", "official"], "shape", 3.0),  # as it was named before
        (["--edit", "a red bus driving on the grass", "--backbone", "zeroscope"], "shape", 7.5),
    ],
)
def test_the_command_takes_the_prompts_task_and_the_backbones_guidance(monkeypatch, tmp_path, options, task, guidance):
    asked = []

    def stop(clip, settings):
        asked.append((settings.task, settings.guidance))
        raise SettingError("far enough")

    monkeypatch.setattr("freemask.jobs.check.check", stop)
    command = ["edit", str(SHAPE.clip), "--source", "a red car driving on the grass", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, [*command, *options]).exit_code == 2
    assert asked == [(task, guidance)]


def test_an_edit_is_scored_as_its_report_has_it(done, tmp_path):
    out, report, _ = done
    told = CliRunner().invoke(app, ["score", str(out)])
    figures = json.loads(told.stdout.splitlines()[-1])
    shared = ("clip", "clip_temporal", "frame_accuracy")
    assert {name: round(figures[name], 4) for name in shared} == {name: report["metrics"][name] for name in shared}
    assert 0 < figures["ssim"] < 1 and "clip" not in figures["absent"]
    assert round(figures["masked_psnr"], 3) == report["metrics"]["background_psnr"]
    nothing = CliRunner().invoke(app, ["score", str(tmp_path)])
    assert nothing.exit_code == 2 and "report.json" in nothing.stderr


def test_the_masks_can_be_read_back(done):
    out, _, _ = done
    masks, every = np.load(out / "masks.npz"), np.load(out / "words.npz")
    assert masks["maps_16x16"].shape[0] == 2 and masks["maps_16x16"].shape[2:] == (4, 16, 16)
    assert masks["maps_16x16"].dtype == np.uint8 and masks["mask"].dtype == bool
    assert masks["mask"].shape == (4, 128, 128) and masks["tokens"].tolist() == ["car"]
    words = every["tokens"].tolist()
    fresh = np.load(out / "words.npz")["edit_words"].tolist()
    told = SHAPE.settings.edit.split()
    assert fresh and words == [*SHAPE.settings.source.split(), *(told[j] for j in fresh)]
    assert every["scales_16x16"].min() > 0
    assert sorted(path.name for path in (out / "words").glob("*.gz")) == [f"{i:02d}.gz" for i in range(len(words))]
    assert np.array_equal(every["maps_16x16"][:, :, words.index("car")], masks["maps_16x16"])
    grids = [k.removeprefix("sites_") for k in masks.files if k.startswith("sites_")]
    assert sum(len(masks[f"sites_{g}"]) for g in grids) == len(masks["sites"])


@pytest.mark.numeric
def test_the_same_inputs_give_the_same_frames(done, tmp_path):
    settings = make_settings(source=SHAPE.settings.source, edit=SHAPE.settings.edit, task="shape", steps=2, frames=4)
    settings = replace(settings, guidance=done[1]["settings"]["guidance"])  # the command takes the backbone's own
    steps = list(run_steps(SHAPE.clip, settings, tmp_path))
    assert all(isinstance(step, Step) for step in steps)
    assert (tmp_path / "edited.mp4").read_bytes() == (done[0] / "edited.mp4").read_bytes()


@pytest.mark.numeric
def test_masks_of_ones_own_make_the_same_edit_again(plain, tmp_path):
    """The masks that a run wrote, given back, are its mask; and its settings.json finds them beside itself."""
    masks = plain[0] / "masks.zip"
    report = finish(run_steps(SHAPE.clip, replace(QUICK, masks=masks), tmp_path / "first"))
    assert report["mask"]["origin"] == "painted" and report["settings"]["masks"] == "masks.zip"
    assert (tmp_path / "first" / "masks.zip").read_bytes() == masks.read_bytes()
    command = ["edit", str(SHAPE.clip), "--settings", str(tmp_path / "first" / "settings.json")]
    told = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "second")])
    assert told.exit_code == 0, told.output
    for name in ("edited.mp4", "masks.zip"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def refuse(*changes: str) -> str:
    options = {"--source": SHAPE.settings.source, "--edit": SHAPE.settings.edit, "--task": "shape", "--out": "unused"}
    options |= dict(zip(changes[1::2], changes[2::2], strict=True))
    result = CliRunner().invoke(app, ["edit", changes[0], *(x for pair in options.items() for x in pair)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stdout == ""
    return re.sub(r"\s+", " ", result.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0"), "2 to 200"),
        (("--solver", "euler"), "ddim or dpm"),
        (("--solver", "dpm", "--eta", "0.5"), "leave eta at 0"),
        (("--frames", "400"), "1 to 81"),
        (("--frames", "60"), "fewer frames"),
        (("--start", "90"), "start"),
        (("--size", "huge"), "WIDTHxHEIGHT"),
        (("--fps", "quick"), "fps"),
        (("--task", "shapes"), "did you mean 'shape'"),
        (("--backbone", "maxi"), "no backbone 'maxi'"),
        (("--edit", SHAPE.settings.source), "the same"),
        (("--edit", ""), "empty"),
        (("--edit", "a lion on the snow"), "never seen: lion"),
        (("--word", "bus"), "choose one of"),
        (("--site", "up 9.9"), "Known: down 0.0"),
        (("--masks", "none.zip"), "none.zip cannot be read"),
    ],
)
def test_refusals_name_fault_and_cure(options, message):
    assert message in refuse(str(SHAPE.clip), *options)


def test_files_that_are_no_clips(tmp_path):
    assert "no file" in refuse(str(tmp_path / "none.mp4"))
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    assert "not a video" in refuse(str(text))
    tiny = tmp_path / "tiny.mp4"
    write_clip(tiny, Clip(np.zeros((8, 8, 8, 3), np.uint8), 8.0))
    assert "16" in refuse(str(tiny))
    whole = SHAPE.clip.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 3])
    assert "cut.mp4" in refuse(str(cut))


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = next(one for one in blocks if "from freemask" in one)
    code = code.replace('"out/edited.mp4"', repr(str(tmp_path / "edited.mp4")))
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    assert len(read_clip(tmp_path / "edited.mp4", frames=8).frames) == 8


def test_the_readmes_commands_are_real():
    text = (ROOT / "README.md").read_text()
    command = re.search(r"python -m freemask (edit .*?)\n```", text, re.S).group(1).replace("\\\n", " ")

    words = shlex.split(command)
    assert (ROOT / words[1]).exists()
    help_text = CliRunner().invoke(app, ["edit", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    assert all(word in help_text for word in words if word.startswith("--"))
    assert len(text.splitlines()) <= 150


@pytest.mark.numeric
def test_a_folder_of_bins_edits_like_one_of_safetensors(pipeline, tmp_path):
    """zeroscope's layout and its kind of files, in the smallest."""
    clip = write_disc(tmp_path / "disc.mp4")
    about = {"source": "a red car on the grass", "edit": "a blue car on the grass", "task": "attribute", "steps": 2}
    reports = []
    for name in (pipeline, to_bins(pipeline, tmp_path / "bins")):
        settings = make_settings(**about, backbone=str(name), frames=2)
        reports.append(finish(run_steps(clip, settings, tmp_path / "out")))
    assert reports[0]["clip"] == {"width": 32, "height": 32, "frames": 2, "fps": 8.0}
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["mask"] == reports[1]["mask"]
    assert reports[0]["mask"]["origin"] == "consensus"


def test_a_precision_is_chosen_by_its_name(pipeline, tmp_path):
    command = ["edit", str(write_disc(tmp_path / "disc.mp4")), "--source", "a red car", "--edit", "a blue car"]
    command += ["--backbone", str(pipeline), "--steps", "2", "--frames", "1", "--task", "attribute"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), "--dtype", "bf16"])
    assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "no"), "--dtype", "fp8"])
    assert wrong.exit_code == 2 and "Known: fp16, bf16, fp32" in wrong.stderr


@pytest.mark.parametrize(("method", "told"), [("freemask", 1), ("fatezero", 0)])
def test_an_image_model_edits_a_clip(tmp_path, method, told):
    """By any method; that there is no temporal attention is told where it would be fused."""
    settings = replace(QUICK, backbone="mini-sd", method=method, frames=2)
    report = finish(run_steps(SHAPE.clip, settings, tmp_path / "out"))
    assert (report["settings"]["method"], report["clip"]["width"]) == (method, 64)
    assert sum("no temporal attention" in one for one in report["words"]["warnings"]) == told
    with np.load(make_extra(tmp_path / "out", "words.npz")) as maps:
        assert {"maps_8x8", "maps_4x4", "maps_2x2"} <= set(maps.files)
    again = make_settings(**read_settings(tmp_path / "out" / "report.json"))
    assert again == replace(settings, word="car")


def test_a_figure_of_what_is_kept_needs_a_mask(tmp_path):
    report = finish(run_steps(SHAPE.clip, replace(QUICK, method="plain", frames=2), tmp_path / "out"))
    assert report["mask"]["kept"] == "nothing"
