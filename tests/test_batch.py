"""Many edits from one manifest: what is read, what is made once, what a fault costs, and FiVE-Bench."""

import csv
import json
import os
import signal
import sys
import time
from threading import Thread
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel
from typer.testing import CliRunner

from freemask.batch import figures, work
from freemask.batch.engine import _start, run_groups
from freemask.batch.five import read_five
from freemask.batch.index import write_index
from freemask.batch.manifest import grouped, read_manifest, shard
from freemask.batch.work import begin, collect, is_done, make_group
from freemask.cli import app
from freemask.clips.video import Clip, read_clip, write_clip
from freemask.errors import MetricError, SettingError
from freemask.families.specs import ROOT

CLIPS = ROOT / "static" / "clips"
SMALL = {"steps": 2, "size": "64x64", "frames": 2}
CAR = "a red car driving on the grass"
CHANGES = [
    {"edit": "a blue car driving on the grass"},
    {"edit": "a red bus driving on the grass"},
    {"edit": "a red car driving on the snow", "method": "fatezero"},
    {"edit": "a painting of a red car driving on the grass", "task": "style", "guidance": 2.5},
]


def rows(*clips, changes=CHANGES):
    return [{"clip": clip, "source": CAR} | change | SMALL for clip in clips for change in changes]


def manifest(folder, given, name="edits.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of two frames, and one that is cut off."""
    folder = tmp_path_factory.mktemp("clips")
    clip = read_clip(CLIPS / "car-grass.mp4", frames=2, size=(64, 64))
    for k, name in enumerate(("one.mp4", "two.mp4", "three.mp4")):
        write_clip(folder / name, Clip(np.roll(clip.frames, 4 * k, axis=2), 8.0))
    (folder / "cut.mp4").write_bytes((folder / "one.mp4").read_bytes()[:700])
    return folder


# ---------------------------------------------------------------- manifests


def test_the_three_kinds_say_the_same(clips):
    given = [*rows("one.mp4"), rows("two.mp4")[0] | {"name": "mine", "fps": 4, "union": True, "seed": 3}]
    every = [read_manifest(manifest(clips, given))]
    (clips / "edits.yaml").write_text(json.dumps(given))  # YAML holds JSON
    with (clips / "edits.csv").open("w", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in given for name in row)))
        table.writeheader()
        table.writerows(given)
    every += [read_manifest(clips / name) for name in ("edits.yaml", "edits.csv")]
    assert every[0] == every[1] == every[2] and not any(edit.wrong for edit in every[0])
    last = every[0][-1]
    assert last.settings and (last.settings.fps, last.settings.union, last.settings.seed) == (4.0, True, 3)
    assert last.folder.startswith("mine-") and every[0][0].folder.startswith("one-")
    assert [edit.settings.task for edit in every[0] if edit.settings] == [
        "attribute",
        "shape",
        "place",
        "style",
        "attribute",
    ]


def test_a_folders_name_is_what_the_edit_depends_on(clips, tmp_path):
    one = read_manifest(manifest(clips, rows("one.mp4")))
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "one.mp4").write_bytes((clips / name).read_bytes())
        there = read_manifest(manifest(tmp_path, rows("one.mp4")))
        assert [edit.folder for edit in there] == [edit.folder for edit in one] or name == "two.mp4"
    assert not {edit.folder for edit in there} & {edit.folder for edit in one}
    shared = read_manifest(manifest(clips, rows("one.mp4")), {"steps": 50, "seed": 7})
    assert {(edit.settings.steps, edit.settings.seed) for edit in shared if edit.settings} == {(2, 7)}
    assert len(read_manifest(manifest(clips, rows("one.mp4", "one.mp4")))) == len(CHANGES)


def test_one_inversion_serves_all_of_a_clip(clips):
    given = [
        *rows("one.mp4", "two.mp4"),
        rows("one.mp4")[0] | {"steps": 3},
        rows("one.mp4")[0] | {"backbone": "mini-sd"},
    ]
    groups = grouped(read_manifest(manifest(clips, [given[-1], *given[:-1]])))
    assert sorted(map(len, groups)) == [1, 1, 4, 4] and groups[0][0].settings.backbone == "mini-sd"
    parts = [shard(groups, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(id(group) for part in parts for group in part) == sorted(map(id, groups))


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", ""])
def test_a_shard_is_one_of_n(part):
    with pytest.raises(SettingError, match="I/N"):
        shard([], part)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("edits.txt", "", "no manifest"),
        ("edits.jsonl", "{", "cannot be read"),
        ("edits.jsonl", "[1]\n", "no list of edits"),
        ("edits.jsonl", "", "no list of edits"),
        ("edits.yaml", "a: 1", "no list of edits"),
        ("edits.yaml", "[]", "holds no edit"),
        ("edits.yaml", "- !!python/object/apply:os.system [ls]", "cannot be read"),
        ("edits.csv", "clip,source,edit\n", "holds no edit"),
        ("edits.csv", "clip,source\na,b,c\n", "more cells"),
        ("edits.csv", "clip,step\none.mp4,3\n", "did you mean 'steps'"),
        ("edits.jsonl", "[" * 100_000, "cannot be read"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=told):
        read_manifest(tmp_path / name)
    with pytest.raises(SettingError, match="no manifest"):
        read_manifest(tmp_path / "gone.csv")


def test_a_row_that_cannot_be_used_is_told_and_does_not_hinder(clips, tmp_path):
    good = rows("one.mp4")[0]
    given = [good, good | {"steps": 1}, good | {"clip": "gone.mp4"}, good | {"clip": "cut.mp4"}, {"clip": "one.mp4"}]
    path = manifest(clips, [*given, good | {"method": "plain", "tau": "much"}], "mixed.jsonl")
    done = CliRunner().invoke(app, ["batch", str(path), "--out", str(tmp_path / "out"), "--shard", "1/1"])
    assert done.exit_code == 0, done.output
    told = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["state"] for row in told] == ["done", *["failed"] * 5]
    wanted = "Allowed: 2 to 200", "gone.mp4", "cut.mp4", "what the clip shows", "tau is 'much'"
    for row, part in zip(told[1:], wanted, strict=True):
        assert part in row["error"]
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 5


# ---------------------------------------------------------------- the engine


def edited(out, edits):
    """Each edit's frames as files, by folder."""
    return {edit.folder: (out / "edits" / edit.folder / "edited.mp4").read_bytes() for edit in edits}


@pytest.fixture(scope="module")
def cluster():
    """Ray that was started before, and stays."""
    ray = pytest.importorskip("ray", reason="requirements-batch.txt is not installed")
    ending = signal.getsignal(signal.SIGTERM)
    _start(ray)
    assert signal.getsignal(signal.SIGTERM) == ending
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def by_two(cluster, clips, tmp_path_factory):
    """Six edits of three clips, by two workers: each change that there is at least once."""
    given = [row for k, name in enumerate(("one", "two", "three")) for row in rows(f"{name}.mp4")[k : k + 2]]
    out, path = tmp_path_factory.mktemp("two"), manifest(clips, given, "six.jsonl")
    done = CliRunner().invoke(app, ["batch", str(path), "--out", str(out), "--workers", "2"])
    assert done.exit_code == 0, done.output
    return out, path, done


def test_two_workers_make_what_one_makes(by_two, tmp_path):
    """To the bit, with three inversions; and a second run makes nothing."""
    out, path, _ = by_two
    edits = read_manifest(path)
    command = ["batch", str(path), "--out", str(tmp_path), "--shard", "1/1"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert edited(out, edits) == edited(tmp_path, edits) and len(set(edited(out, edits).values())) == 6
    for folder in (out, tmp_path):
        told = collect(folder, edits)
        assert [row["inversion"] for row in told].count("made") == 3 and {row["state"] for row in told} == {"done"}
        assert sorted(one.name for one in (folder / ".work").iterdir()) == [] and not list(
            (folder / "errors").iterdir()
        )
    before = {one: one.stat().st_mtime_ns for one in tmp_path.glob("edits/*/*")}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "0 of 6 edits" in again.stderr
    assert before == {one: one.stat().st_mtime_ns for one in tmp_path.glob("edits/*/*")}


def test_the_results_are_a_table_and_a_page(by_two):
    parquet = pytest.importorskip("pyarrow.parquet")
    out, path, done = by_two
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    table = parquet.read_table(out / "results.parquet").to_pylist()
    assert table == lines and len(lines) == 6 and all(row["seconds"] > 0 and row["clip"] > 0 for row in lines)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "edits": 6,
        "done": 6,
        "failed": 0,
        "open": 0,
        "index": str(out / "index.html"),
    }
    page = (out / "index.html").read_text()
    for row in lines:
        assert all((out / row["folder"] / name).exists() for name in ("edited.mp4", "poster.jpg", "settings.json"))
        assert f'src="{row["folder"]}/poster.jpg"' in page and f'href="{row["folder"]}/edited.mp4"' in page


def test_a_killed_workers_group_goes_on_behind_what_is_done(cluster, clips, tmp_path):
    """The worker dies in the middle of the second edit: the first stays, the second begins at its kept inversion."""
    given = rows("one.mp4", changes=CHANGES[:2])
    given = [row | {"steps": 4} for row in given]
    edits = read_manifest(manifest(clips, given, "killed.jsonl"))
    begin(tmp_path, edits)
    killed = []

    def kill():
        while not is_done(tmp_path, edits[0]) or not (tmp_path / ".work" / f"{edits[1].folder}.tries").exists():
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if "ray::Worker" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.send_signal(signal.SIGKILL)

    killer = Thread(target=kill, daemon=True)
    killer.start()
    assert list(run_groups(tmp_path, grouped(edits), workers=1)) == [edit.folder for edit in edits]
    killer.join(5)
    assert killed and [row["inversion"] for row in collect(tmp_path, edits)] == ["made", "kept from an earlier edit"]


def test_more_workers_than_there_are_is_refused(cluster, clips, tmp_path):
    with pytest.raises(SettingError, match="10000 workers are asked"):
        list(run_groups(tmp_path, grouped(read_manifest(manifest(clips, rows("one.mp4")))), workers=10_000))
    assert cluster.is_initialized()


def test_ray_that_nobody_started_is_started_and_ended(clips, tmp_path, monkeypatch):
    told = []
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}]
    ray = SimpleNamespace(is_initialized=lambda: False, nodes=lambda: nodes)
    ray.init, ray.shutdown = lambda **where: told.append(where["address"]), lambda: told.append("ended")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SettingError, match="3 workers are asked, and there are 2 CPUs"):
        list(run_groups(tmp_path, grouped(read_manifest(manifest(clips, rows("one.mp4")))), workers=3))
    assert told == ["local", "ended"]


def test_without_ray_it_says_what_to_install(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = manifest(clips, rows("one.mp4"))
    done = CliRunner().invoke(app, ["batch", str(path), "--out", str(tmp_path)])
    assert done.exit_code == 2 and "pip install -r requirements-batch.txt" in done.output
    assert {json.loads(line)["state"] for line in (tmp_path / "results.jsonl").read_text().splitlines()} == {"open"}


# ---------------------------------------------------------------- faults


def test_an_edit_in_which_workers_die_again_and_again_fails_alone(clips, tmp_path):
    edits = read_manifest(manifest(clips, rows("one.mp4", changes=CHANGES[:2])))
    begin(tmp_path, edits)
    (tmp_path / ".work" / f"{edits[0].folder}.tries").write_text("2")
    assert list(make_group(tmp_path, edits)) == [edit.folder for edit in edits]
    told = collect(tmp_path, edits)
    assert [row["state"] for row in told] == ["failed", "done"] and "ended 2 times" in told[0]["error"]
    begin(tmp_path, edits)  # of another run, which gives it new tries
    assert list(make_group(tmp_path, edits)) and all(is_done(tmp_path, edit) for edit in edits)


@pytest.mark.parametrize("error", [ValueError("a bug"), torch.OutOfMemoryError("no memory"), KeyboardInterrupt()])
def test_a_fault_in_the_middle(clips, tmp_path, monkeypatch, error):
    """Half of an edit is never in its place; only Ctrl-C ends the run, and what was done stays."""
    real, path = work.run_steps, manifest(clips, rows("one.mp4", changes=CHANGES[:3]), "faults.jsonl")
    edits = read_manifest(path)

    def faulty(clip, settings, out, **options):
        steps = real(clip, settings, out, **options)
        if settings.edit == CHANGES[1]["edit"]:
            for step in steps:
                yield step
                if step.stage == "decode" and step.index:
                    raise error
        return (yield from steps)

    monkeypatch.setattr(work, "run_steps", faulty)
    command = ["batch", str(path), "--out", str(tmp_path), "--shard", "1/1"]
    done = CliRunner().invoke(app, command)
    stopped = isinstance(error, KeyboardInterrupt)
    assert done.exit_code == (130 if stopped else 0)
    told = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["state"] for row in told] == ["done", "open" if stopped else "failed", "open" if stopped else "done"]
    assert not (tmp_path / "edits" / edits[1].folder).exists() and not list((tmp_path / ".work").glob("*.tries"))
    monkeypatch.setattr(work, "run_steps", real)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert {row["state"] for row in collect(tmp_path, edits)} == {"done"}


def test_a_time_limit_keeps_what_is_done(clips, tmp_path):
    """SIGTERM in the middle of the second edit, as a scheduler sends it."""
    path = manifest(clips, [row | {"steps": 4} for row in rows("one.mp4", changes=CHANGES[:2])], "limit.jsonl")
    first, second = read_manifest(path)

    def end():
        while not (tmp_path / ".work" / f"{second.folder}.tries").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=end, daemon=True).start()
    done = CliRunner().invoke(app, ["batch", str(path), "--out", str(tmp_path), "--shard", "1/1"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 130 and (told["done"], told["open"], told["failed"]) == (1, 1, 0)
    assert (
        is_done(tmp_path, first) and not is_done(tmp_path, second) and "1 open" in (tmp_path / "index.html").read_text()
    )


def test_a_shard_has_no_workers(clips, tmp_path):
    path = manifest(clips, rows("one.mp4"))
    done = CliRunner().invoke(app, ["batch", str(path), "--out", str(tmp_path), "--shard", "1/2", "--workers", "2"])
    assert done.exit_code == 2 and "leave --workers out" in done.output


def test_the_page_escapes_what_people_wrote(tmp_path):
    evil = '<script>alert(1)</script>"&'
    row = {"name": evil, "source": evil, "edit": evil, "method": evil, "error": evil, "state": "failed", "folder": evil}
    write_index(tmp_path / "index.html", [row, row | {"state": "done"}])
    page = (tmp_path / "index.html").read_text()
    assert page.count("<script>") == 1 and "alert(1)</script>" not in page and "1 done, 1 failed" in page


# ---------------------------------------------------------------- FiVE-Bench


@pytest.fixture(scope="module")
def five(clips, tmp_path_factory):
    """Two clips in the benchmark's layout; a mask moves a column a frame."""
    root = tmp_path_factory.mktemp("five")
    for name in ("edit_prompt", "videos", "bmasks"):
        (root / name).mkdir()
    frames = read_clip(CLIPS / "car-grass.mp4", frames=8, size=(64, 48)).frames
    for name in ("0001_car", "0002_bus"):
        write_clip(root / "videos" / f"{name}.mp4", Clip(frames, 8.0))
        (root / "bmasks" / name).mkdir()
        for k in range(8):
            mask = np.zeros((48, 64), np.uint8)
            mask[10:30, 20 + k : 40 + k] = 255
            Image.fromarray(mask).save(root / "bmasks" / name / f"{k + 1:05}.png")
    pairs = {
        1: [("0001_car", "a [red car] driving on the grass", "a [red bus] driving on the grass")],
        3: [
            ("0001_car", CAR.replace("red", "[red]"), CAR.replace("red", "[blue]")),
            ("0002_bus", "a car or a [car]", "a car or a [bus]"),
        ],
        6: [("0002_bus", CAR, "the grass")],
    }
    for task, some in pairs.items():
        named = [dict(zip(("video_name", "source_prompt", "target_prompt"), one, strict=True)) for one in some]
        (root / "edit_prompt" / f"edit{task}_FiVE.json").write_text(json.dumps(named))
    return root


def test_the_benchmark_is_a_manifest(five):
    told = read_five(five)
    assert [row["name"] for row in told] == [
        "edit1-001-0001_car",
        "edit3-001-0001_car",
        "edit3-002-0002_bus",
        "edit6-001-0002_bus",
    ]
    assert [row["task"] for row in told] == ["shape", "attribute", "attribute", "shape"]
    assert [row.get("word") for row in told] == ["car", "red", "car#2", None]
    assert told[0]["source"] == CAR and told[0]["clip"] == "videos/0001_car.mp4"
    edits = read_manifest(five, {"steps": 2})
    assert [edit.name for edit in edits] == [row["name"] for row in told] and edits[0].group == edits[1].group
    (five / "edit_prompt" / "edit5_FiVE.json").write_text('{"a": 1}')
    with pytest.raises(SettingError, match=r"edit5_FiVE\.json"):
        read_five(five)
    (five / "edit_prompt" / "edit5_FiVE.json").unlink()


def test_its_figures_of_a_batch(five, tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="requirements-batch.txt is not installed")
    for name in ("_dino", "_squeeze", "_tracker", "_raft"):
        monkeypatch.setattr(figures, name, refused)
    shared = tmp_path / "settings.json"
    shared.write_text(json.dumps({"steps": 2, "frames": 3, "start": 0.25, "fps": 8}))
    out = tmp_path / "out"
    runner = CliRunner()
    assert (
        runner.invoke(
            app, ["batch", str(five), "--out", str(out), "--settings", str(shared), "--shard", "1/1"]
        ).exit_code
        == 0
    )
    done = runner.invoke(app, ["score", str(out), "--five", str(five)])
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout.splitlines()[-1])
    scored = [json.loads(line) for line in (out / "five.jsonl").read_text().splitlines()]
    assert [row["task"] for row in table] == ["1 rigid", "3 colour", "6 removed", "All"] and table[-1]["edits"] == len(
        scored
    ) == 3
    assert table[-1]["psnr"] == pytest.approx(np.mean([one["psnr"] for one in scored]))
    assert set(scored[0]["absent"]) == {"structure_distance", "lpips", "motion_fidelity", "warp_error"}
    # by hand: frames 2 to 4 of the video and their masks, the edit at the video's size
    row = json.loads((out / "results.jsonl").read_text().splitlines()[0])
    before = read_clip(five / "videos" / "0001_car.mp4", frames=3, start=0.25, fps=8).frames
    edit = read_clip(out / row["folder"] / "edited.mp4", frames=3, fps=8).frames
    after = np.stack([np.asarray(Image.fromarray(frame).resize((64, 48))) for frame in edit])
    kept = np.stack([np.asarray(Image.open(five / "bmasks" / "0001_car" / f"{k:05}.png")) == 0 for k in (3, 4, 5)])
    error = ((before.astype(float) - after) * kept[..., None] / 255) ** 2
    assert scored[0]["mse"] == pytest.approx(error.mean(), rel=1e-4)
    assert scored[0]["psnr"] == pytest.approx((-10 * np.log10(error.mean((1, 2, 3)))).mean(), rel=1e-4)
    assert scored[0]["ours"]["clip"] == row["clip"] and 0 < scored[0]["clip_edited_part"] <= 100
    wrong = runner.invoke(app, ["score", str(out), "--five", str(tmp_path)])
    assert wrong.exit_code == 2 and "FiVE-Bench" in wrong.output
    wrong = runner.invoke(app, ["score", str(tmp_path), "--five", str(five)])
    assert wrong.exit_code == 2 and "results.jsonl" in wrong.output


def refused():
    raise MetricError("It is not to be had.")


def test_a_refusal_is_asked_for_once():
    asked = []

    @figures._asked_once
    def load():
        asked.append(1)
        raise MetricError("no network")

    for _ in range(3):
        with pytest.raises(MetricError, match="no network"):
            load()
    assert len(asked) == 1


def test_motion_that_goes_along():
    generator = torch.Generator().manual_seed(0)
    there = torch.randn(5, 8, 2, generator=generator).cumsum(1)
    # each track has itself, which counts 1 less, so the nearest other one is found
    alone = torch.einsum("ntc,mtc->nmt", *[F.normalize(there.diff(dim=1), dim=-1)] * 2).mean(-1) - torch.eye(5)
    assert figures.motion_fidelity(there, there) == pytest.approx(float(alone.amax(1).mean()))
    assert figures.motion_fidelity(there, there.roll(1, 0)) == pytest.approx(1)
    still = torch.zeros(5, 8, 2)
    assert figures.motion_fidelity(there, still) == pytest.approx(0, abs=1e-6)


def test_frames_brought_back_along_the_flow():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)
    moving = np.stack([wide[:, k : k + 32] for k in range(4)])  # each frame shows what the next one shows a pixel left

    def flow(a, b):
        shift = -1.0 if torch.equal(a[:, :, :, 1:], b[:, :, :, :-1]) else 1.0
        return torch.stack([torch.full(a[:, 0].shape, shift), torch.zeros(a[:, 0].shape)], 1)

    inside = figures.warp_error(moving[:, :, 1:-1], moving[:, :, 1:-1], flow)
    other = rng.integers(0, 255, moving.shape, dtype=np.uint8)
    assert inside < 0.01 < 0.1 < figures.warp_error(moving, other, flow)
    apart = figures.warp_error(
        moving, np.stack([np.zeros_like(wide[:, :32])] * 2 + [np.full_like(wide[:, :32], 255)] * 2), flow
    )
    assert apart == pytest.approx(1 / 3)  # of three pairs one differs everywhere


def test_the_structure_of_a_picture():
    """Cosines of the last layer's keys, as a ViT of the same layout gives them by hand."""
    torch.manual_seed(0)
    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTModel(ViTConfig(**shape, image_size=64, patch_size=32), add_pooling_layer=False).eval()
    frame = torch.rand(3, 224, 320) * 255
    found = figures.self_similarity(model, frame)
    assert found.shape == (7 * 10 + 1,) * 2 and torch.allclose(found.diagonal(), torch.ones(71), atol=1e-5)
    scaled = (frame[None] - torch.tensor(figures.MEAN).view(3, 1, 1)) / torch.tensor(figures.SPREAD).view(3, 1, 1)
    states = model(scaled, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
    last = model.layers[-1]
    keys = last.attention.k_proj(last.layernorm_before(states))[0]
    wanted = F.cosine_similarity(keys[:, None], keys[None], dim=-1)
    assert torch.allclose(found, wanted, atol=1e-5)
