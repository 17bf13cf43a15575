"""The picture of a confusion matrix: legible for few and for many classes."""

import numpy as np
import pytest
from PIL import Image

from qkvit.analysis.pictures.confusion import confusions, draw_confusion


def drawn(tmp_path, classes, extra=0, longest=8):
    counts = np.random.default_rng(0).integers(0, 20, (classes, classes + extra))
    names = [f"class {i}".ljust(longest, "x") for i in range(classes + extra)]
    draw_confusion(counts, names[:classes], names, tmp_path / "c.png", title="title", provenance="from here")
    return Image.open(tmp_path / "c.png")


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 200])
def test_the_picture_fits_a_screen_with_any_number_of_classes(tmp_path, classes):
    with drawn(tmp_path, classes, extra=1, longest=40) as picture:
        assert picture.info["Description"] == "from here"
        assert max(picture.size) < 3000
        assert np.asarray(picture.convert("L")).min() < 100


def test_confusions_are_listed_by_number_and_right_answers_are_none():
    counts = np.array([[5, 3, 0], [0, 7, 4], [0, 0, 9]])
    found = confusions(counts, "abc", "abc")
    assert [(one.images, one.of, one.name, one.taken_for) for one in found] == [(4, 11, "b", "c"), (3, 8, "a", "b")]


def test_names_that_do_not_fit_are_refused(raises_sentence, tmp_path):
    with raises_sentence(ValueError, "(2, 2)", "3 of columns"):
        draw_confusion(np.eye(2, dtype=int), "ab", "abc", tmp_path / "c.png", title="")
    assert not (tmp_path / "c.png").exists()
