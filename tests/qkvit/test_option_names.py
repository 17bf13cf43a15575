"""The command line names its own options."""

import pytest

from qkvit.option_names import as_options

OPTIONS = ["on_bad_image", "streaming", "layers", "label", "split", "to", "force", "images"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a.png: bad; pass on_bad_image='skip'", "a.png: bad; pass --on-bad-image skip"),
        ("pass streaming=True", "pass --streaming"),
        ("not known; pass streaming=False", "not known; leave --streaming out"),
        ("layers=[0, 9] asks; pass 1, or None for all", "--layers 0,9 asks; pass 1, or leave it out for all"),
        ("no column 'x'; leave label out", "no column 'x'; leave --label out"),
        ("pass one of them as split", "pass one of them with --split"),
        ("family='vitt' is not known", "--to vitt is not known"),
        ("write data.label=x, --set split=y, labels=3 or backend='cpu'",) * 2,
        ("3 images, as images of a split, in force",) * 2,
        ("there is no folder seen/split=train/nope here",) * 2,
        ("layers=-3 is none", "--layers -3 is none"),
    ],
)
def test_arguments_become_options(said, shown):
    assert as_options(said, OPTIONS, {"family": "to"}) == shown


def test_a_command_without_such_options_says_what_was_said():
    assert as_options("pass on_bad_image='skip' as split", ["recipe"], {"family": "to"}) == (
        "pass on_bad_image='skip' as split"
    )
    assert as_options("pass force=True", []) == "pass force=True"
