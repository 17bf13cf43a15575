"""Labels of a model and classes of a data set are matched by name, or refused in one sentence."""

import random

import pytest

from qkvit.errors import UserError
from qkvit.evaluation_labels import match_labels

ANIMALS = ["cat", "cow", "dog", "great_auk"]


def test_each_class_gets_the_label_of_its_name_whatever_the_order():
    for seed in range(5):
        labels = random.Random(seed).sample(ANIMALS, 4)
        indices = match_labels(ANIMALS, dict(enumerate(labels)))
        assert [labels[index] for index in indices] == ANIMALS


def test_case_underscores_and_hyphens_do_not_matter():
    assert match_labels(["Great Auk", "cat"], {0: "cat", 1: "great-auk"}) == [1, 0]


def test_exact_names_come_first_where_others_differ_in_case_alone():
    assert match_labels(["us", "US"], {0: "US", 1: "us"}) == [1, 0]


def test_a_model_may_know_more_classes_than_the_data():
    assert match_labels(["dog"], dict(enumerate(ANIMALS))) == [2]


def test_equal_lists_match_even_with_a_name_twice():
    """ImageNet has two cranes."""
    names = ["crane", "dog", "crane"]
    assert match_labels(names, dict(enumerate(names))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "labels", "words"),
    [
        (["cat", "unicorn"], ANIMALS, ["1 of the data's 2 classes", "unicorn", "cat, cow"]),
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], ["LABEL_0, LABEL_1", "--by-index"]),
        (["crane", "dog"], ["dog", "crane", "crane"], ["'crane'", "several"]),
        (["Dog", "dog"], ["dog", "cat"], ["several", "dog"]),
        ([f"class {i}" for i in range(50)], ANIMALS, ["50 of the data's 50", "and 45 more"]),
    ],
)
def test_what_does_not_match_is_refused_by_name(raises_sentence, names, labels, words):
    with raises_sentence(UserError, *words):
        match_labels(names, dict(enumerate(labels)))
