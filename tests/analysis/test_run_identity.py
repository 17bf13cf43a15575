"""What makes pixel values of an image is known again in another process, and a change of it is seen."""

import os
import subprocess
import sys
from functools import partial

from qkvit.analysis import TokenLayout
from qkvit.analysis.run_identity import described, difference, identity_of, settings_of

FUNCTIONS = """
def of_set(image):
    return image in {"a", "b", "c", "d"}
def nested(image):
    return [pixel / 255 for pixel in image]
class Transform:
    def __call__(self, image):
        return image
"""


def test_the_same_in_another_process_and_further_down_in_its_file():
    names = {"__name__": "__main__"}
    exec(FUNCTIONS, names)
    here = [described(it) for it in (names["of_set"], names["nested"], names["Transform"](), partial(names["nested"]))]
    shown = "print([described(it) for it in (of_set, nested, Transform(), partial(nested))])"
    code = f"from functools import partial\nfrom qkvit.analysis.run_identity import described\n{FUNCTIONS}\n{shown}"
    environment = os.environ | {"PYTHONHASHSEED": "1"}  # the order of sets
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(here)


def test_a_change_of_a_number_or_a_name_is_seen():
    sources = ["lambda x: x / 255", "lambda x: x / 127.5", "lambda x: x.mean()", "lambda x: x.sum()"]
    sources += ["lambda x: [y + 1 for y in x]", "lambda x: [y + 2 for y in x]"]
    assert len({described(eval(source)) for source in sources}) == len(sources)
    assert described(eval(sources[0])) == described(eval("\n\n" + sources[0]))


def test_long_values_are_shortened():
    assert len(difference("class names", ["cat"] * 1000, ["dog"] * 1000)) < 250


def test_settings_that_differ_in_a_none_alone_are_told():
    assert difference("transform", {"size": 1, "pad": None}, {"size": 1}) == "transform: other settings"


def test_a_layout_without_a_patch_size_is_that_of_progress_which_knew_none():
    square, flat = (TokenLayout(grid=(2, 2), patch_size=size) for size in (None, (8, 4)))
    assert "patch_size" not in identity_of([], "", square, None)["layout"]
    assert identity_of([], "", flat, None)["layout"]["patch_size"] == (8, 4)


def test_how_attention_is_computed_is_no_other_model(tiny_model):
    """Nor is the name that an implementation has while something is recorded; which activation it has, is."""
    config = tiny_model().config
    before = settings_of(config)
    config._attn_implementation = "eager"
    assert settings_of(config) == before
    config.hidden_act = "relu"
    assert settings_of(config) != before
