"""The verdict on an edit: its level and its words for given figures."""

import pytest

from freemask.jobs.verdict import LIKE, judged, outside

GOOD = {"reconstruction_psnr": 28.3, "frame_accuracy": 1.0, "clip": 0.85, "toy_likeness": 0.93}
PAIR = "a red car and a yellow dog on the grass"


@pytest.mark.parametrize(
    ("figures", "level", "said"),
    [
        ({}, "good", "The reconstruction is near the clip (28.3 dB). The judge finds the edit in every frame."),
        ({"reconstruction_psnr": 20.0, "frame_accuracy": 0.75}, "good", "in 75 % of the frames, the others fit"),
        ({"reconstruction_psnr": 19.9}, "doubtful", "is rough (19.9 dB, where 20 are good): what should stay may not."),
        ({"reconstruction_psnr": 14.9}, "poor", "fails (14.9 dB, where 20 are good): the inversion lost the clip."),
        ({"frame_accuracy": 0.625}, "doubtful", "in 62 % of the frames, the others fit the source prompt better."),
        ({"frame_accuracy": 0.0}, "poor", "in no frame: all fit the source prompt better."),
        ({"clip": 0.59}, "doubtful", "The judge does not recognise the edit prompt (0.59, where 0.60 is good)."),
        ({"clip": 0.59, "frame_accuracy": 0.0}, "poor", "does not recognise the edit prompt"),
        ({"clip": 0.59, "toy_likeness": 0.74}, "poor", "does not recognise the edit prompt"),
        ({"toy_likeness": 0.74}, "doubtful", "not like the toy world, all that this backbone has seen (likeness 0.74"),
        ({"toy_likeness": 0.74}, "doubtful", "so what it says counts for little here."),
        ({"toy_likeness": 0.74, "frame_accuracy": 0.0}, "poor", "in no frame"),
    ],
)
def test_a_verdict_is_as_bad_as_its_worst_figure(figures, level, said):
    verdict = judged(GOOD | figures)
    assert verdict.level == level and said in " ".join(verdict.sentences)


def test_more_steps_are_the_cure_of_a_bad_inversion_but_not_of_a_strange_clip():
    assert "More steps help." in judged({"reconstruction_psnr": 16.0}).sentences[0]
    strange = " ".join(judged({"reconstruction_psnr": 16.0, "toy_likeness": 0.5}).sentences)
    assert "More steps" not in strange and "choose zeroscope" in strange


def test_what_was_not_measured_says_nothing():
    assert judged({"reconstruction_psnr": None, "background_psnr": 31.0}).sentences == []
    assert outside(None) is None and outside(LIKE) is None and outside(LIKE - 0.01)


def test_of_several_objects_a_judge_that_knows_one_is_not_believed():
    """Neither that the clip is strange nor that the prompt is not recognised; nor is the edit called good."""
    verdict = judged(GOOD | {"toy_likeness": 0.7, "clip": 0.5}, PAIR)
    assert verdict.level == "doubtful" and "taught one object a scene, and the prompt names 2" in verdict.sentences[0]
    assert "in every frame" in verdict.sentences[-1]
    assert judged(GOOD | {"clip": 0.5}, PAIR).level == "good"
    assert judged(GOOD | {"frame_accuracy": 0.0}, PAIR).level == "poor"
