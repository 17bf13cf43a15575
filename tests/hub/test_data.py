"""Images of a data set on the Hub: copied, streamed row by row, or read where they lie."""

import json

import numpy as np
import pytest

OPEN = """
import json, sys
import numpy as np
from qkvit.data import open_images
from qkvit.data.opening import splits_in

def facts(source, **more):
    samples = list(source)
    np.save(f"{len(found)}.npy", np.stack([np.asarray(sample.image) for sample in samples]))
    labels = [sample.label for sample in samples]
    known = {"classes": source.class_names, "split": source.split, "kind": type(source).__name__}
    found.append({**known, "labels": labels, **more})

found = []
copied = open_images("me/photos", split="train")
facts(copied, length=len(copied), all_labels=copied.labels.tolist(), name=copied[3].name)
facts(open_images("me/photos", split="train", streaming=True))
in_place = open_images("hf://datasets/me/photos", split="train", streaming=True)
facts(in_place, length=len(in_place), all_labels=in_place.labels.tolist(), name=in_place[17].name)
try:
    open_images("me/photos")
except ValueError as error:
    found.append(str(error))
found.append(splits_in("me/photos"))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def opened(photos, python, tmp_path_factory):
    work = tmp_path_factory.mktemp("data")
    found = json.loads(python(work, OPEN).splitlines()[-1])
    return found, [np.load(work / f"{number}.npy") for number in range(3)]


@pytest.mark.parametrize(
    ("way", "kind"),
    enumerate(["TableSource", "StreamingSource", "ParquetSource"]),
    ids=["copied", "streamed", "in place"],
)
def test_pixels_and_labels_are_those_that_were_pushed(opened, photos, way, kind):
    facts, pixels = opened[0][way], opened[1][way]
    assert facts["kind"] == kind
    assert (facts["classes"], facts["split"]) == (["blue", "red"], "train")
    assert facts["labels"] == [0, 1] * 9
    assert np.array_equal(pixels, np.stack(photos["train"]))


@pytest.mark.parametrize(
    ("way", "name"), [(0, "me/photos/train[3]"), (2, "train-00001-of-00002.parquet[8]")], ids=["copied", "in place"]
)
def test_length_and_names_are_known_where_there_is_an_index(opened, way, name):
    facts = opened[0][way]
    assert (facts["length"], facts["all_labels"], facts["name"]) == (18, [0, 1] * 9, name)


def test_the_splits_are_named_where_one_has_to_be_chosen(opened):
    assert opened[0][3] == "me/photos has the splits train, test; pass one of them as split"
    assert opened[0][4] == ["train", "test"]
