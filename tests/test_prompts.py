import pytest

from freemask.errors import ClipError, PromptError
from freemask.presets import make_settings
from freemask.prompts import align, check, find_word, infer_word, warnings, words


@pytest.mark.parametrize(
    ("source", "edit", "task", "word"),
    [
        ("a red car driving on the grass", "a blue car driving on the grass", "attribute", "car"),
        ("a car driving on the grass", "a blue car driving on the grass", "attribute", "car"),
        ("a red car driving on the grass", "a red car driving on the snow", "attribute", "grass"),
        ("a red car driving on the grass", "a red bus driving on the grass", "shape", "car"),
        ("a red car driving on the grass", "a dog walking on the grass", "shape", "car"),
        ("a cat is walking", "a dog is walking", "shape", "cat"),
        ("a red car driving on the grass", "sketch style painting of a red car driving on the grass", "style", "car"),
        ("a silver jeep driving in the countryside", "Van Gogh style, a silver jeep driving", "style", "jeep"),
        ("Sketch style painting of a swan swimming", "a swan swimming", "style", "swan"),
        ("A Bear is walking.", "a bear is walking in the snow", "style", "Bear"),
        ("a red car driving on the grass", "a red car driving on the snow", "place", "car"),
        ("in the night a car is driving", "in the snow a car is driving", "place", "car"),
    ],
)
def test_the_edited_word_is_inferred(source, edit, task, word):
    assert infer_word(source, edit, task) == word


def test_no_noun_is_an_error():
    with pytest.raises(PromptError, match="names no object"):
        infer_word("on the", "in the", "style")


def test_equal_prompts_align_to_the_identity():
    alignment = align("a red car", "A red car!")
    assert alignment.source_of == (0, 1, 2)
    assert alignment.changed == alignment.removed == ()


def test_added_words_have_no_source():
    alignment = align("a car on grass", "a very fast blue car on snow")
    assert alignment.source_of == (0, None, None, None, 1, 2, 3)
    assert alignment.changed == (1, 2, 3, 6)


def test_words_ignore_case_and_punctuation():
    assert words("A silver-grey jeep, driving; it's fast.") == ["A", "silver-grey", "jeep", "driving", "it's", "fast"]
    assert find_word("A Polar bear, walking", "polar BEAR!") == [1, 2]


def test_a_missing_word_lists_the_prompts_words():
    with pytest.raises(PromptError, match="choose one of: a, bear, walks"):
        find_word("a bear walks", "dog")


def test_warnings_name_what_disagrees_with_the_task():
    source = "a red car driving on the grass"
    assert "is replaced" in warnings(source, "a red bus driving on the grass", "car", 1)[0]
    assert "'place' keep it" in warnings(source, "a blue car driving on the grass", "car", 0)[0]
    assert "stays the same" in warnings(source, "a blue car driving on the grass", "car", 0)[0]
    assert warnings(source, "a blue car driving on the grass", "car", 1) == []


GOOD = {"source": "a red car driving on the grass", "edit": "a blue car driving on the grass", "task": "attribute"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": " "}, "what the clip shows is empty"),
        ({"edit": "!?"}, "what it should show is empty"),
        ({"edit": "A red car driving on the grass."}, "the same"),
        ({"word": "bus"}, "choose one of: a, red, car"),
        ({"edit": "a zebra driving on the moon"}, "never seen: zebra, moon.*knows only.*swan"),
    ],
)
def test_prompts_that_cannot_be_edited(changes, message):
    """Refused before the clip is even looked at."""
    with pytest.raises(PromptError, match=message):
        check("unused.mp4", make_settings(**(GOOD | changes)))


def test_no_clip():
    with pytest.raises(ClipError, match="no clip"):
        check(None, make_settings(**GOOD))
