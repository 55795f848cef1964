"""Calibration and benchmark: measured on clips with known masks and known edits, resumed where they stopped."""

import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from freemask.bench import (
    LEVERS,
    METHODS,
    Options,
    Sample,
    benchmark_steps,
    calibrate_steps,
    davis_samples,
    example_maps,
    full_backbone,
    lever_steps,
    markdown,
    save_figure,
    selftest_steps,
    speed,
    toyworld_samples,
    usual_methods,
)
from freemask.bench.benchmark import warped_psnr
from freemask.bench.methods import presets
from freemask.bench.selftest import CLIP, FRAMES, SCENE, Check
from freemask.bench.speed import row_flops
from freemask.bench.table import tabulate
from freemask.cli import app
from freemask.clips.video import read_clip
from freemask.errors import ClipError
from freemask.families.specs import ROOT
from freemask.jobs.metrics import psnr
from freemask.jobs.run import run_steps
from freemask.presets import load_preset
from freemask.steps import finish, mapped
from freemask.toyworld.cases import CASE_TASKS, sample_case
from freemask.toyworld.scenes import DEVELOP, render
from freemask.words.prompts import align, words

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


@pytest.mark.parametrize("task", CASE_TASKS)
def test_a_case_changes_one_field_and_the_words_for_it(task):
    for seed in range(DEVELOP, DEVELOP + 40):
        case = sample_case(task, seed)
        assert case == sample_case(task, seed)
        before, after = vars(case.scene), vars(case.true)
        assert {name for name in before if before[name] != after[name]} == {case.field}
        source, edit = case.prompts
        changed = [words(edit)[j] for j in align(source, edit).changed]
        if task == "style":
            assert changed == [case.true.style, "style", "painting", "of"]
        else:
            assert set(changed) - {"a", "an"} == {getattr(case.true, case.field)}
        assert case.word in words(source)


def test_true_clips_are_consistent_with_their_own_motion():
    case = sample_case("attribute", DEVELOP + 3)
    true = render(case.true, 64)
    straight = warped_psnr(true.frames, case.true, true.masks)
    assert straight > 30
    assert warped_psnr(true.frames[::-1], case.true, true.masks) < straight - 5


def test_the_table_says_how_sure_it_is():
    def row(value: float) -> dict[str, float | None]:
        return {"true_psnr": value, "present": 1.0, "background_psnr": None}

    values = [20.0, 22.0, 24.0, 22.0]
    cases = [
        {
            "task": "shape",
            "rows": {
                "plain": row(value - 2),
                "freemask": row(value),
                "fatezero": row(value - 1) | {"true_psnr": float("inf") if i == 0 else value - 1},
                "fatezero-mmc": row(value - 1.5),
            },
        }
        for i, value in enumerate(values)
    ]
    for case in cases:
        for one in case["rows"].values():
            one |= {name: None for name in ("true_ssim", "inside_psnr", "outside_psnr", "temporal")}
    cases[0]["rows"]["no-lmmc"] = {}  # a method that found no mask there
    table = tabulate(cases, ("true_psnr", "present", "background_psnr"))
    lines = {line["method"]: line for line in table["rows"]}
    assert lines["freemask"]["true_psnr"] == 22.0 and lines["freemask"]["n"] == 4
    assert 20 < lines["freemask"]["true_psnr_low"] < 22 < lines["freemask"]["true_psnr_high"] < 24
    assert lines["freemask"]["background_psnr"] is None
    ours = [p for p in table["paired"] if p["method"] == "freemask"]
    paired = {(p["against"], p["metric"]): p for p in ours}
    assert paired["plain", "true_psnr"] | {"mean": 2.0, "low": 2.0, "high": 2.0} == paired["plain", "true_psnr"]
    assert paired["fatezero", "true_psnr"]["mean"] == 1.0
    assert ("plain", "background_psnr") not in paired
    (both,) = (p for p in table["paired"] if p["method"] == "fatezero-mmc")
    assert (both["against"], both["metric"], both["mean"]) == ("fatezero", "true_psnr", -0.5)
    assert "- true_psnr: -0.500 (-0.500 to -0.500)" in markdown(tabulate(cases))
    assert lines["no-lmmc"]["true_psnr"] is None
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("task", CASE_TASKS)
def test_every_method_is_a_preset(task):
    found = presets(task)
    assert ("copy", *found) == METHODS
    own = load_preset(task)
    same, chosen = {"freemask"}, {f"freemask-{own.selection}"}
    same |= {"no-latent"} if own.alpha_latent == 0 else set()
    chosen |= {"free-self"} if own.free_self or own.mask == "none" else set()
    groups = [same, chosen] if own.mask == "none" else [same | chosen]  # where it has none, a mask is another preset
    if task == "shape":
        groups.append({"paper", "no-latent"})
    else:  # m = 0 where δ = 1
        groups += [{kind, f"{kind}-masked"} for kind in ("cross", "temporal")]
    del found["freemask-oracle"]  # the task's own preset under another mask, as are VideoDirector's
    # and FlowEdit's, of which some differ in the mask that they are given
    found = {name: preset for name, preset in found.items() if not name.startswith(("videodirector", "flowedit"))}
    for name, preset in found.items():
        alike = {other for other, one in found.items() if one == preset}
        assert alike == next((group for group in groups if name in group), {name})


def test_one_scene_four_methods(tmp_path):
    options = Options(methods=("copy", "plain", "freemask-adaptive", "freemask-oracle"), steps=3, frames=2)
    run = dict(limit=1, seed=DEVELOP, tasks=["attribute"])
    table = finish(benchmark_steps("mini", tmp_path, options, **run))
    lines = {line["method"]: line for line in table["rows"]}
    assert tuple(lines) == options.methods
    assert lines["freemask-oracle"]["mask_iou"] > 0.7
    assert lines["freemask-oracle"]["background_psnr"] > lines["plain"]["background_psnr"]
    assert lines["copy"]["present"] == 0
    assert lines["freemask-adaptive"]["rank"] > 0.5
    assert all(0 < line["clip"] <= 1 and 0 < line["clip_temporal"] <= 1 for line in lines.values())
    assert all(10 < line["true_psnr"] < 50 and line["seconds"] > 0 for line in lines.values())
    (strip,) = (tmp_path / "strips").iterdir()
    assert cv2.imread(str(strip)).shape[0] == 128 * 6
    (case,) = (tmp_path / "cases").iterdir()
    written = case.stat().st_mtime_ns
    assert finish(benchmark_steps("mini", tmp_path, options, **run)) == table
    assert case.stat().st_mtime_ns == written
    told = json.loads(case.read_text())
    told["made"]["plain"] = "another preset"  # a method that changed is measured again, the others are kept
    told["rows"]["plain"]["true_psnr"] = 0.0
    told["rows"]["copy"]["present"] = 1.0
    case.write_text(json.dumps(told))
    again = {line["method"]: line for line in finish(benchmark_steps("mini", tmp_path, options, **run))["rows"]}
    assert again["plain"]["true_psnr"] == lines["plain"]["true_psnr"] and again["copy"]["present"] == 1.0
    assert "| freemask-oracle |" in markdown(table)
    save_figure(tmp_path / "table.png", table)
    assert cv2.imread(str(tmp_path / "table.png")) is not None


def test_videodirector_is_measured_with_what_it_prepares(tmp_path):
    """Its first stage is made once for the methods that share it, and counted in the time of each."""
    names = "plain", "videodirector", "videodirector-no-sa2", "videodirector-shared", "videodirector-everywhere"
    options = Options(methods=names, steps=2, frames=2)
    table = finish(benchmark_steps("mini-motion", tmp_path, options, limit=1, seed=DEVELOP, tasks=["attribute"]))
    lines = {line["method"]: line for line in table["rows"]}
    assert lines["videodirector"]["guided_psnr"] == lines["videodirector-no-sa2"]["guided_psnr"]
    guided = [lines[name]["guided_psnr"] for name in ("plain", "videodirector-shared", "videodirector")]
    assert 10 < guided[0] < guided[1] and len(set(guided)) == 3
    assert lines["videodirector-everywhere"]["true_psnr"] != lines["videodirector"]["true_psnr"]
    assert lines["videodirector-no-sa2"]["seconds"] > 2 * lines["plain"]["seconds"]
    assert 0 < lines["videodirector"]["background_perceptual"] < 1
    told = [pair for pair in table["paired"] if pair["method"] == "videodirector" and pair["metric"] == "guided_psnr"]
    assert [pair["against"] for pair in told] == ["plain", "videodirector-shared", "videodirector-everywhere"]
    assert "| videodirector-shared | " in markdown(table).partition("guided: the source under guidance")[2]
    assert usual_methods("mini-motion")[:4] == ("copy", "plain", "freemask", "videodirector")
    assert not any("videodirector" in name for name in usual_methods("mini"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["calibrate"], "--suite toyworld"),
        (["calibrate", "--suite", "davis"], "--suite toyworld"),
        (["calibrate", "nowhere"], "no folder"),
        (["calibrate", "--suite", "toyworld", "--tau", "1"], "0 to 1"),
        (["benchmark", "--out", "x", "--suite", "davis"], "Known: toyworld"),
        (["benchmark", "--out", "x", "--tasks", "style,colour"], "'colour'"),
        (["benchmark", "--out", "x", "--methods", "freemsk"], "did you mean 'freemask'"),
        (["toyworld", "train", "frame", "--run", "x"], "no stage 'frame'; did you mean 'frames'"),
        (["toyworld", "render", "x.mp4", "--object", "trukc"], "no object 'trukc'; did you mean 'truck'"),
        (["selftest", "--dtype", "fp8"], "no precision 'fp8'"),
        (["levers", "--backbone", "nowhere", "--lever", "CUDA grph"], "did you mean 'CUDA graph'"),
    ],
)
def test_refusals(command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert message in done.stderr and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_calibrate_writes_a_codebook_and_its_figure(tmp_path):
    out = tmp_path / "book.json"
    done = CliRunner().invoke(
        app, ["calibrate", "--suite", "toyworld", "--clips", "1", "--steps", "2", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    book = json.loads(out.read_text())
    assert (told["site"], told["clips"], told["skipped"]) == (book["site"], 1, 0)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".pdf"}


def test_a_selftest_passes_on_what_ships(tmp_path):
    done = CliRunner().invoke(app, ["selftest", "--steps", "6", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["passed"] and figures["codebook"] == "mini.json" and figures["size"] == [128, 128]
    assert cv2.imread(str(tmp_path / "masks.png")) is not None
    for said in ("It looks right", "Apache-2.0", "mini.json, measured", "Seconds", "GiB of memory", "IoU of the mask"):
        assert said in done.stderr
    assert 0 < figures["weights_gib"] < figures["peak_gib"]


def test_a_selftest_fails_on_noise_and_says_why(pipeline, tmp_path):
    done = CliRunner().invoke(app, ["selftest", "--backbone", str(pipeline), "--steps", "3", "--out", str(tmp_path)])
    assert done.exit_code == 1
    figures = json.loads(done.stdout.splitlines()[-1])
    bad = {check["name"] for check in figures["checks"] if not check["passed"]}
    assert {"noise explained", "autoencoder PSNR in dB", "IoU of the mask"} <= bad and not figures["passed"]
    for said in ("It does not look right", "BAD noise explained", "download them again", "licence", "none is measured"):
        assert said.casefold() in done.stderr.casefold()


def test_a_selftest_survives_numbers_that_are_none(pipeline, tmp_path):
    """What an overflow of half precision leaves behind."""
    broken = tmp_path / "broken"
    shutil.copytree(pipeline, broken)
    file = next((broken / "unet").glob("*.safetensors"))
    state = load_file(file)
    save_file(state | {"conv_in.bias": state["conv_in.bias"] * float("nan")}, file, {"format": "pt"})
    with np.errstate(invalid="ignore"):
        figures = finish(selftest_steps(str(broken), tmp_path / "out", steps=2))
    assert not figures["passed"] and figures["sheet"] is None
    assert next(check for check in figures["checks"] if check["name"] == "noise explained")["value"] is None
    json.dumps(figures, allow_nan=False)


def test_the_selftests_clip_is_the_scene_whose_masks_are_known():
    clip = read_clip(ROOT / "static" / "clips" / CLIP, frames=FRAMES)
    assert psnr(render(SCENE, clip.frames.shape[1], frames=FRAMES).frames, clip.frames) > 35


@pytest.mark.parametrize(("value", "passed"), [(0.5, True), (2.0, True), (2.1, False), (float("nan"), False)])
def test_a_check_keeps_its_bounds(value, passed):
    check = Check("name", value, 0.5, 2, "what", "the cure")
    assert check.passed is passed and ("the cure" in str(check)) is not passed


def test_the_paper_sized_row_is_counted():
    """10.4 TFLOP at 8 frames of 512², most of it convolutions and linear layers."""
    assert row_flops(full_backbone("meta"), (1, 4, 8, 64, 64)) == pytest.approx(10.4e12, rel=0.01)


def test_what_is_compared_takes_turns(monkeypatch):
    """A stage of three steps and what it does after the last; seconds are counted by a clock that the test moves."""
    clock, order = [0.0], list[str]()

    def spend(name, seconds):
        order.append(name)
        clock[0] += seconds

    def stage():
        for _ in range(3):
            spend("ours", 2)
            yield
        spend("ours", 1)
        return "made"

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    told = speed.in_turn(stage(), [lambda: spend("theirs", 1)] * 3, torch.device("cpu"))
    assert told == ((7, 3), "made")
    assert order == ["ours", "theirs"] * 3 + ["ours"]
    with pytest.raises(AssertionError, match="more steps"):
        speed.in_turn(stage(), [lambda: None] * 2, torch.device("cpu"))


def test_a_profile_accounts_for_the_time():
    told = CliRunner().invoke(
        app, ["profile", "--steps", "2", "--repeats", "1", "--frames", "2", "--features", "host", "--size", "64x64"]
    )
    assert not told.exception, told.exception
    figures = json.loads(told.stdout.splitlines()[-1])
    table, row = figures["table"], figures["row_tflop"]
    assert (figures["frames"], figures["size"], figures["dtype"]) == (2, [64, 64], "float32")
    assert table["invert"]["tflop"] == pytest.approx(2 * row, abs=1e-3)
    assert figures["memory"]["features"] == "host"
    assert 0 < table["edit"]["share"] < 1.5 and "tflop" not in table["decode"]
    assert 0 < figures["floor_seconds"] < table["all, files written"]["seconds"]
    assert figures["matrix_tflops"] > 0
    ours, theirs = figures["seconds"]["edit_replay"]
    assert figures["overhead_edit"]["replay"] == pytest.approx(ours / theirs, abs=0.01)
    assert 0.2 < figures["peer"] < 5 and 0.2 < figures["overhead_invert"]["store"] < 5
    others = figures["others"]
    assert 0 < sum(one["share"] for one in others) < 1
    assert [one["ms"] for one in others] == sorted((one["ms"] for one in others), reverse=True)
    assert not [one for one in others if "conv" in one["name"] or "mm" in one["name"]]


BRIEF = ["profile", "--steps", "3", "--ratio-steps", "2", "--repeats", "1", "--frames", "1", "--size", "64x64"]


def test_a_profile_that_is_stopped_tells_what_it_has(monkeypatch):
    """The table is told before the rounds of ratios, which have steps of their own; a signal in them loses nothing."""

    def stopped(*rest):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("freemask.bench.profile.beside_peer", stopped)
    told = CliRunner().invoke(app, BRIEF)
    assert told.exit_code == 130
    early, late = (json.loads(line) for line in told.stdout.splitlines())
    assert early == late and (early["steps"], early["ratio_steps"]) == (3, 2)
    assert early["table"]["invert"]["tflop"] == pytest.approx(3 * early["row_tflop"], abs=1e-3)
    assert "overhead_edit" not in early and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_profile_that_is_stopped_in_the_whole_edit_tells_how_far_that_came(monkeypatch):
    def stopped_at_the_third(*given, **options):
        def look(step):
            if (step.stage, step.index) == ("edit", 3):
                os.kill(os.getpid(), signal.SIGTERM)
            return step

        return (yield from mapped(run_steps(*given, **options), look))

    monkeypatch.setattr("freemask.bench.speed.run_steps", stopped_at_the_third)
    told = CliRunner().invoke(app, BRIEF)
    (line,) = told.stdout.splitlines()
    table = json.loads(line)["table"]
    assert told.exit_code == 130 and table["invert"]["steps"] == "3 of 3" and table["edit"]["steps"] == "2 of 3"
    assert table["invert"]["seconds"] > 0


def test_a_profile_of_features_that_there_are_not_is_refused_before_it_begins(monkeypatch):
    monkeypatch.setattr("freemask.cli.load_or_full", lambda *_: pytest.fail("it is refused before anything is loaded"))
    told = CliRunner().invoke(app, ["profile", "--features", "disk"])
    assert told.exit_code == 2 and "Allowed: store or host or replay or auto" in " ".join(told.stderr.split())


def test_levers_draw_what_is_drawn_plainly(editor):
    names = [name for name in LEVERS if not name.startswith("torch.compile")]  # which wants minutes and a compiler
    figures = finish(lever_steps(editor, frames=3, size=(32, 32), rounds=2, only=names))
    assert (figures["frames"], figures["size"], figures["dtype"]) == (3, [32, 32], "float32")
    told = figures["levers"]
    assert "CUDA alone" in told["CUDA graph"]["refused"] and "refused" in told["attention by cudnn_attention"]
    drawn = {name for name in told if "refused" not in told[name]}
    assert {"channels-last", "temporal convolutions as 2-D", "fused QKV", "one row at a time", "bfloat16"} <= drawn
    for name in drawn:
        low, middle, high = told[name]["ratio"]
        assert 0 < low <= middle <= high and told[name]["setup"] >= 0
        assert told[name]["apart"] < (0.1 if name == "bfloat16" else 1e-4), name
    assert told["bfloat16"]["apart"] > 0
    parts = editor.backbone.unet.modules()
    assert not [part for part in parts if isinstance(part, Attention) and part.fused_projections], "a copy was changed"


def test_a_lever_that_is_slower_is_told_so_and_one_that_breaks_takes_no_other_with_it(editor, monkeypatch):
    def thrice(unet):
        return lambda *given: [LEVERS["one row at a time"](unet)(*given) for _ in range(3)][-1]

    def breaks(unet):
        raise RuntimeError("there is no compiler\nand more")

    for name, lever in (("thrice", thrice), ("breaks", breaks)):
        monkeypatch.setitem(LEVERS, name, lever)
    told = finish(lever_steps(editor, frames=3, size=(32, 32), rounds=5, only=["thrice", "breaks"]))["levers"]
    assert told["thrice"]["ratio"][1] > 1 and told["breaks"] == {"refused": "there is no compiler"}


def test_a_lever_that_there_is_not_is_refused():
    told = CliRunner().invoke(app, ["levers", "--lever", "chanels-last"])
    assert told.exit_code == 2 and "did you mean 'channels-last'" in told.stderr
    told = CliRunner().invoke(app, ["levers", "--frames", "2", "--rounds", "2", "--lever", "one row at a time"])
    assert list(json.loads(told.stdout.splitlines()[-1])["levers"]) == ["one row at a time"]
