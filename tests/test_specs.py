import json

import pytest
import yaml

from freemask.errors import BackboneError, SettingError
from freemask.families import specs
from freemask.families.specs import backbone_folder, backbone_name, backbone_spec, backbones, known_words
from freemask.settings import make_settings


def test_every_backbone_has_a_spec_and_mini_is_the_first():
    assert [spec.name for spec in backbones()] == [
        *("mini", "mini-motion", "mini-sd", "mini-wan"),
        *("animatediff", "modelscope", "sd15", "wan", "zeroscope"),
    ]
    zeroscope = backbone_spec("zeroscope")
    assert (zeroscope.hub_id, zeroscope.size, zeroscope.frames) == ("cerspense/zeroscope_v2_576w", (576, 320), 24)
    assert zeroscope.licence.startswith("CC-BY-NC-4.0") and zeroscope.weight_bytes == 2 * 1_835_275_563


@pytest.mark.parametrize("name", ["damo-vilab/text-to-video-ms-1.7b", "ali-vilab/text-to-video-ms-1.7b", "modelscope"])
def test_a_hub_id_is_its_short_name(name):
    assert backbone_name(name) == "modelscope" and backbone_spec(name) is backbone_spec("modelscope")
    assert make_settings(source="a car", edit="a bus", backbone=name).backbone == "modelscope"
    assert backbone_folder(name) is None and known_words(name) is None


def test_an_unknown_backbone_names_its_neighbour():
    with pytest.raises(SettingError, match="no backbone 'zeroskope'; did you mean 'zeroscope'.*hub id such as"):
        make_settings(source="a car", edit="a bus", backbone="zeroskope")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "x"}, "no setting 'licens'; did you mean 'licence'"),
        ({"inflation": {"attends": ["next"]}}, "inflation"),
        ({"hub_id": "owner/model"}, "a folder or a hub_id, one of them"),
        ({"parameters": {"unet": 1, "decoder": 2}}, "parameters"),
    ],
)
def test_a_spec_is_checked(tmp_path, monkeypatch, changes, message):
    values = yaml.safe_load((specs.PRESETS / "backbones" / "mini.yaml").read_text()) | changes
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "mini.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(specs, "PRESETS", tmp_path)
    with pytest.raises(SettingError, match=message):
        backbones.__wrapped__()


def test_the_shipped_spec_is_what_its_configs_say():
    for backbone in ("mini", "mini-wan", "mini-sd"):
        shipped = backbone_spec(backbone)
        read = backbone_spec(str(shipped.folder))
        assert (read.size, read.vae_factor) == (shipped.size, shipped.vae_factor)
    assert read.frames == shipped.frames == 81  # an image model takes any number
    assert read.licence == "unknown: see where you got it" and read.parameters is None


def test_a_folder_that_says_too_little_is_named(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(BackboneError, match="unet/config.json"):
        backbone_spec(str(tmp_path))
    for part, config in (("unet", {"sample_size": None}), ("vae", {"block_out_channels": [1, 2, 3, 4]})):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    spec = backbone_spec(str(tmp_path))
    assert (spec.size, spec.vae_factor, spec.frames) == ((256, 256), 8, 24)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert backbone_spec(str(tmp_path)).frames == 81  # an image model takes any number
