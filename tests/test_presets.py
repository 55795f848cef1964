import json
from dataclasses import replace

import pytest
import yaml

from freemask import presets
from freemask.errors import SettingError
from freemask.families.specs import known_words
from freemask.presets import load_preset, task_names
from freemask.settings import examples, make_settings, read_settings


def test_every_task_loads():
    for name in task_names():
        assert load_preset(name).name == name
    assert load_preset("shape").delta == 0
    assert load_preset("style").region == "background"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0.*2 to 200"),
        ({"guidance": 99}, "guidance is 99.*1 to 30"),
        ({"frames": 1000}, "frames is 1000.*1 to 81"),
        ({"tau": 1.0}, "tau is 1.*0 to 1"),
        ({"eta": -1}, "eta is -1.*0 to 1"),
        ({"size": (8, 8)}, "size.*16 to 2048"),
        ({"features": "magic"}, "store or host or replay or auto"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"task": "atribute"}, "did you mean 'attribute'"),
        ({"backbone": "maxi"}, "no backbone 'maxi'"),
        ({"guidance": float("nan")}, "guidance"),
    ],
)
def test_bad_settings_name_the_range_or_the_neighbour(changes, message):
    with pytest.raises(SettingError, match=message):
        make_settings(**({"source": "a car", "edit": "a bus"} | changes))


def test_a_missing_setting_is_named():
    with pytest.raises(SettingError, match="edit is missing"):
        make_settings(source="a car")


def test_a_jobs_own_values_override_the_task():
    settings = make_settings(source="a car", edit="a bus", task="shape", tau=0.5, alpha_cross=0.0)
    preset = settings.preset()
    assert (preset.tau, preset.alpha_cross, preset.alpha_self) == (0.5, 0.0, 0.99)


def test_an_unknown_key_in_a_preset_names_its_neighbour(tmp_path, monkeypatch):
    values = {"title": "t", "summary": "s", "delta": 1, "region": "object", "alpha_cros": 1.0}
    (tmp_path / "freemask").mkdir()
    (tmp_path / "freemask" / "style.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    with pytest.raises(SettingError, match="did you mean 'alpha_cross'"):
        load_preset.__wrapped__("style")


def test_examples_are_complete():
    shipped = examples()
    assert {e.settings.task for e in shipped} >= {"style", "attribute", "shape", "place"}
    for example in shipped:
        assert example.clip.exists()
        assert set(f"{example.settings.source} {example.settings.edit}".lower().split()) <= set(known_words("mini"))


def test_tau_follows_the_selection():
    about = {"source": "a red car", "edit": "a blue car"}
    assert make_settings(task="shape", selection="consensus", **about).preset().tau == 0.5
    assert make_settings(task="attribute", selection="codebook", **about).preset().tau == 0.4
    assert make_settings(task="attribute", selection="codebook", tau=0.6, **about).preset().tau == 0.6
    assert make_settings(task="attribute", **about).preset().tau == load_preset("attribute").tau
    with pytest.raises(SettingError, match="leave selection out"):
        make_settings(method="released", selection="adaptive", **about)
    with pytest.raises(SettingError, match="codebook or adaptive or consensus"):
        make_settings(selection="best", **about)


def test_a_mask_of_ones_own_is_one_mask(tmp_path):
    about = {"source": "a red car", "edit": "a blue car"}
    cell = make_settings(task="attribute", site="up 3.0", timestep=241, **about).preset()
    row = make_settings(task="attribute", site="up 3.0", **about).preset()
    assert (cell.selection, cell.time_aware, cell.tau) == ("codebook", False, 0.4)
    assert row.time_aware is True
    masks = tmp_path / "masks.zip"
    for both in ({"site": "mid", "selection": "codebook"}, {"site": "mid", "masks": masks}):
        with pytest.raises(SettingError, match="give one of them"):
            make_settings(**about, **both)
    with pytest.raises(SettingError, match="timestep is given without site"):
        make_settings(timestep=241, **about)
    with pytest.raises(SettingError, match="leave site out"):
        make_settings(method="plain", site="mid", **about)


def test_recorded_settings_are_read_again(tmp_path):
    own = make_settings(source="a red car", edit="a blue car", site="up 3.0", timestep=241, size=(64, 48))
    (tmp_path / "settings.json").write_text(json.dumps(own.record("car")))
    assert make_settings(**read_settings(tmp_path / "settings.json")) == replace(own, word="car")
    masked = make_settings(source="a red car", edit="a blue car", masks=tmp_path / "drawn.zip")
    (tmp_path / "settings.json").write_text(json.dumps(masked.record("car")))
    assert make_settings(**read_settings(tmp_path / "settings.json")).masks == tmp_path / "masks.zip"
