import pytest

from freemask.errors import ClipError, PromptError
from freemask.jobs.check import check
from freemask.settings import make_settings
from freemask.words.positions import named, numbered
from freemask.words.prompts import align, find_word, infer_task, infer_word, unseen, warnings, words


@pytest.mark.parametrize(
    ("source", "edit", "task", "word"),
    [
        ("a red car driving on the grass", "a blue car driving on the grass", "attribute", "car"),
        ("a car driving on the grass", "a blue car driving on the grass", "attribute", "car"),
        ("a red car driving on the grass", "a red car driving on the snow", "attribute", "grass"),
        ("a red car driving on the grass", "a red bus driving on the grass", "shape", "car"),
        ("a red car driving on the grass", "a dog walking on the grass", "shape", "car"),
        ("a cat is walking", "a dog is walking", "shape", "cat"),
        ("a king walking", "a queen walking", "shape", "king"),
        ("a horse rider walking", "a camel rider walking", "shape", "horse"),
        ("a red car chasing a dog", "a blue car chasing a cat", "shape", "dog"),
        ("a dog chasing a red car", "a cat chasing a blue car", "shape", "dog"),
        ("a red car driving on the grass", "a blue bus driving on the snow", "shape", "car"),
        ("a red car driving on the grass", "a blue car driving on the snow", "attribute", "car"),
        ("a red car driving on the grass", "sketch style painting of a red car driving on the grass", "style", "car"),
        ("a silver jeep driving in the countryside", "Van Gogh style, a silver jeep driving", "style", "jeep"),
        ("Sketch style painting of a swan swimming", "a swan swimming", "style", "swan"),
        ("A Bear is walking.", "a bear is walking in the snow", "style", "Bear"),
        ("a red car driving on the grass", "a red car driving on the snow", "place", "car"),
        ("in the night a car is driving", "in the snow a car is driving", "place", "car"),
        ("a dog chasing a dog", "a dog chasing a cat", "shape", "dog#2"),
        ("a dog chasing a dog", "a cat chasing a dog", "shape", "dog"),
        ("a dog chasing a dog", "a dog chasing a red dog", "attribute", "dog#2"),
        ("a dog chasing a dog", "a red dog chasing a dog", "attribute", "dog"),
        ("a red dog chasing a red dog", "a red dog chasing a blue dog", "attribute", "dog#2"),
        ("a dog chasing a dog", "a dog chasing a dog in the snow", "place", "dog"),
        ("a car passing a Car near a car", "a car passing a Car near a bus", "shape", "car#3"),
        ("sketch style painting of a dog chasing a dog", "a dog chasing a dog", "style", "dog"),
        ("a cat and a dog walking", "a horse and a bird walking", "shape", "dog"),
        ("a dog beside a dog", "watercolor painting of a dog beside a dog", "style", "dog"),
        ("a dog behind a dog", "a blue dog behind a dog", "attribute", "dog"),
        ("a dog between a dog and a dog", "a dog between a dog and a cat", "shape", "dog#3"),
        ("a dog beside a dog on the grass", "a dog beside a dog on the sand", "place", "dog"),
    ],
)
def test_the_edited_word_is_inferred(source, edit, task, word):
    assert infer_word(source, edit, task) == word


@pytest.mark.parametrize(
    ("source", "edit", "task"),
    [
        ("a red car driving on the grass", "a blue car driving on the grass", "attribute"),
        ("a car driving on the grass", "a blue car driving on the grass", "attribute"),
        ("a polar bear walking", "a brown bear walking", "attribute"),
        ("a red car driving on the grass", "a red bus driving on the grass", "shape"),
        ("a red car driving on the grass", "a dog walking on the grass", "shape"),
        ("a red car driving on the grass", "a blue bus driving on the grass", "shape"),
        ("a dog chasing a dog", "a dog chasing a cat", "shape"),
        ("in the snow a car is driving", "in the snow a bus is driving", "shape"),
        ("a car is driving over", "a bus is driving over", "shape"),
        ("a dog behind a dog", "a cat behind a dog", "shape"),
        ("a dog next to a dog", "a blue dog next to a dog", "attribute"),
        ("a red car driving on the grass", "a red car driving in the snow", "place"),
        ("in the night a car is driving", "in the snow a car is driving", "place"),
        ("a bear is walking", "a bear is walking in the snow", "place"),
        ("a red car driving", "sketch style painting of a red car driving", "style"),
        ("a jeep driving", "Van Gogh style, a jeep driving", "style"),
        ("a jeep driving", "a jeep driving in the style of Monet", "style"),
        ("a jeep in the style of Monet", "a jeep in the style of Rembrandt", "style"),
        ("Monet style painting of a jeep", "Rembrandt style painting of a jeep", "style"),
        ("a watercolour of a swan", "a swan", "style"),
        ("a red car driving on the grass", "a blue car driving on the snow", None),
        ("a car driving", "a car driving and a dog", None),
        ("a cat walking", "a cat running", None),
        ("a car", "a car", None),
    ],
)
def test_the_task_is_inferred_from_what_changes(source, edit, task):
    assert infer_task(source, edit) == task


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


@pytest.mark.parametrize(
    ("word", "at"),
    [("dog", [1]), ("dog#1", [1]), ("DOG#2", [4]), ("dog #2", [4]), ("a dog#2", [3, 4]), ("chasing a dog", [2, 3, 4])],
)
def test_a_word_that_stands_twice_is_told_apart(word, at):
    assert find_word("a dog chasing a dog", word) == at


@pytest.mark.parametrize("word", ["dog#3", "dog#0", "chasing#2", "#2"])
def test_an_occurrence_that_is_not_there_lists_every_word(word):
    with pytest.raises(PromptError, match="choose one of: a, dog, chasing, a#2, dog#2"):
        find_word("a dog chasing a dog", word)


def test_words_are_named_so_that_they_are_found_again():
    prompt = "a dog chasing a dog and a Dog"
    names = numbered(words(prompt))
    assert names == ["a", "dog", "chasing", "a#2", "dog#2", "and", "a#3", "Dog#3"]
    assert [find_word(prompt, name) for name in names] == [[i] for i in range(len(names))]
    assert named(words(prompt), [3, 4]) == "a dog#2"


def test_a_warning_is_of_the_occurrence_that_is_edited():
    pair = "a dog chasing a dog", "a dog chasing a cat"
    assert warnings(*pair, "dog#2", 0) == []
    assert "stays the same" in warnings(*pair, "dog", 0)[0]


def test_warnings_name_what_disagrees_with_the_task():
    source = "a red car driving on the grass"
    assert "is replaced" in warnings(source, "a red bus driving on the grass", "car", 1)[0]
    assert "'place' keep it" in warnings(source, "a blue car driving on the grass", "car", 0)[0]
    assert "stays the same" in warnings(source, "a blue car driving on the grass", "car", 0)[0]
    assert warnings(source, "a blue car driving on the grass", "car", 1) == []
    bears = "a polar bear walking", "a brown bear walking", "polar bear"  # of two words that one is replaced is enough
    assert "is replaced" in warnings(*bears, 1)[0] and warnings(*bears, 0) == []


def test_unknown_words_are_named_once_and_without_case():
    assert unseen("A Zebra and a zebra on the moon", {"a", "and", "on", "the"}) == ["zebra", "moon"]


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
