"""What is too long, too deep or nobody's to name is refused in a sentence, and quickly."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

from freemask import page
from freemask.cli.edit import asked_settings
from freemask.errors import PromptError, SettingError
from freemask.families.specs import backbone_folder, usual_guidance
from freemask.jobs.kept import KeptPrepared
from freemask.masks.stored import load_tensors, save_tensors
from freemask.page.wire import hear, painted_masks
from freemask.settings import LARGEST, infer_settings, make_settings, read_settings
from freemask.words.positions import numbered, occurrence
from freemask.words.prompts import LONGEST, MOST, find_word, words

SOURCE, EDIT = "a red car driving on the grass", "a blue car driving on the grass"


def test_a_prompt_is_as_long_as_a_model_may_read() -> None:
    assert len(words("car " * MOST)) == MOST
    for long in ("car " * (MOST + 1), "c" * (LONGEST + 1), " " * 100_000):
        with pytest.raises(PromptError, match="over the limit of .*: shorten it"):
            words(long)
        with pytest.raises(PromptError, match="over the limit"):
            make_settings(source=long, edit=EDIT)
        assert "over the limit" in page.follow_prompts(long, EDIT, "shape", "", "mini", "freemask")[1]
        task, guessed = page.follow_difference(SOURCE, long, "style", "style")
        assert isinstance(task, dict) and guessed == "style"


def test_words_are_numbered_in_no_time() -> None:
    alike = ["a"] * 2000  # what once took the cube of that
    begun = time.process_time()
    assert numbered(alike)[-1] == "a#2000"
    assert time.process_time() - begun < 60
    assert numbered("a dog chasing a dog".split()) == ["a", "dog", "chasing", "a#2", "dog#2"]


def test_a_number_of_thousands_of_digits_is_none() -> None:
    assert occurrence("car#" + "9" * 5000) == 1 and occurrence("car # 2 ") == 2
    with pytest.raises(PromptError) as caught:
        find_word(SOURCE, "car#" + "9" * 900)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, json.dumps({"word": "x" * (LARGEST + 1)})]
)
def test_a_file_of_settings_is_neither_deep_nor_large(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(SettingError, match="holds no settings"):
        read_settings(tmp_path / "settings.json")


@pytest.mark.parametrize(
    "changed", [{"labels": "x"}, {"source": 5}, {"backbone": [1]}, {"x" * 9000: 1}, {"tau": "y" * 9000}]
)
def test_a_setting_of_the_wrong_type_is_told_in_a_sentence(tmp_path: Path, changed: dict) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"source": SOURCE, "edit": EDIT} | changed))
    with pytest.raises(SettingError) as caught:
        asked_settings(tmp_path / "settings.json", False, {})
    assert len(str(caught.value)) < 700


def test_the_task_and_the_guidance_are_inferred_where_they_are_left_out() -> None:
    inferred = infer_settings({"source": SOURCE, "edit": EDIT, "guidance": None})
    assert (inferred.task, inferred.guidance) == ("attribute", usual_guidance("mini"))
    assert infer_settings({"source": SOURCE, "edit": EDIT, "task": "style", "guidance": 9}).task == "style"


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-here/x/y", "a\0b", "/" + "x" * 300 + "/y"])
def test_what_can_be_no_path_is_no_backbone(name: str) -> None:
    with pytest.raises(SettingError, match="There is no backbone"):
        backbone_folder(name)
    assert usual_guidance(name) == 7.5


def test_a_link_asks_the_disk_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)
    for folder in (tmp_path, tmp_path / "none"):
        assert page.follow_link(f"?source=a+car&backbone={folder}&steps=9", ["mini"])
    assert len(told) == 2 and all("This page does not offer the backbone" in one for one in told)


def test_events_that_the_page_never_sends_are_refused() -> None:
    for data in (None, {}, [], {"start": "x"}, {"start": float("nan")}, {"start": 10**400}):
        with pytest.raises(gr.Error, match="did not arrive from the page"):
            hear(SimpleNamespace(_data=data), "start", float)
    for told in ({}, {"h": "x", "w": 8, "data": ""}, {"h": float("inf"), "w": 8, "data": ""}):
        with pytest.raises(SettingError, match="paint it again"):
            painted_masks(told)
    with pytest.raises(gr.Error, match="no edit yet"):
        page.take_cell(None, SimpleNamespace(_data={"site": "up 3.0", "timestep": None, "tau": 0.4}))


def test_what_is_stored_is_read_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    file, made = (
        tmp_path / "a.safetensors",
        {"latents": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).bfloat16()},
    )
    save_tensors(file, made, {"prompt": "a car"})
    read, about = load_tensors(file)
    assert about == {"prompt": "a car"} and all(torch.equal(read[name], made[name]) for name in made)
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    data = file.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(data), 60):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(Exception):  # noqa: B017  safetensors and json raise many kinds
            read, about = load_tensors(file)
            same = about == {"prompt": "a car"} and all(torch.equal(read[name], made[name]) for name in made)
            assert not same, "a byte that does not matter"
            pytest.fail("damaged tensors were read")


def test_what_was_prepared_is_made_anew_where_it_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / f"inversion-{'0' * 32}.safetensors"
    KeptPrepared(file, torch.device("cpu"))["reconstruction"] = {"latents": torch.arange(64.0)}
    (stored,) = tmp_path.iterdir()
    assert "reconstruction" in KeptPrepared(file, torch.device("cpu"))
    data = bytearray(stored.read_bytes())
    data[-3] ^= 1
    stored.write_bytes(data)
    assert "reconstruction" not in KeptPrepared(file, torch.device("cpu")) and not stored.exists()
