"""What a result depends on stands beside it."""

import json

import pytest
import torch

from qkvit.provenance import provenance


def test_it_names_what_was_typed_versions_and_machine():
    found = provenance("qkvit evaluate me/model", seed=3, packages=("datasets",))
    assert found["command"] == "qkvit evaluate me/model"
    assert found["seed"] == 3
    assert {"qkvit", "python", "torch", "transformers", "numpy", "pillow", "datasets"} == set(found["versions"])
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["cores"] >= 1
    assert json.loads(json.dumps(found)) == found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_named():
    assert torch.cuda.get_device_name(0) in provenance("", seed=0, device="cuda:0")["machine"]["device"]
