"""A saved model carries its code: it loads, learns, is saved and loads again where qkvit is not installed."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import hub

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.modeling.shipping import AUTO_MAP, flat_sources

IMAGE_SIZE = (16, 24)
FIELDS = {
    "image_size": IMAGE_SIZE,
    "position_embedding": "rope2d",
    "num_register_tokens": 2,
    "qk_norm": True,
    "layer_scale_init_value": 0.1,
}

# Runs in a process of its own. Its arguments are a folder and the name of a function below.
SCRIPT = '''
import json, pathlib, sys

class Blocked:
    """qkvit cannot be imported here."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "qkvit":
            raise ModuleNotFoundError("qkvit is not installed here")

sys.meta_path.insert(0, Blocked())
import torch
from PIL import Image
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
    AutoModelForMaskedImageModeling, Trainer, TrainingArguments, pipeline,
)

torch.set_num_threads(1)
work = pathlib.Path(sys.argv[1])
pixels, labels = torch.load(work / "pixels.pt"), torch.tensor([1, 3])
facts = {}


def load(name, auto_class=AutoModelForImageClassification):
    return auto_class.from_pretrained(work / name, trust_remote_code=True)


def logits(model):
    with torch.no_grad():
        return model.eval()(pixels).logits


def keep(name, model):
    """Leave a model's logits and weights for the tests to look at."""
    torch.save({"logits": logits(model), "weights": model.state_dict()}, work / f"{name}.found.pt")


def first():
    model = load("classifier")
    keep("classifier", model)
    keep("by_trainer", load("by_trainer"))
    facts["class"], facts["module"] = type(model).__name__, type(model).__module__
    facts["processor"] = AutoImageProcessor.from_pretrained(work / "classifier").image_mean

    out = model(pixels, output_attentions=True, output_qkv=[-1])
    facts["maps"] = [list(weights.shape) for weights in out.attentions]
    facts["keys"] = [tensor is not None for tensor in out.keys]

    config = AutoConfig.from_pretrained(work / "classifier", trust_remote_code=True)
    facts["heads"] = [
        type(load("classifier", AutoModel)).__name__,
        type(load("classifier", AutoModelForMaskedImageModeling)).__name__,
        type(AutoBackbone.from_config(config, trust_remote_code=True)).__name__,
    ]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.train()(pixels, labels=labels).loss
    before.backward()
    optimizer.step()
    facts["loss"] = [before.item(), model.eval()(pixels, labels=labels).loss.item()]
    model.save_pretrained(work / "finetuned")
    keep("finetuned_here", model)
    keep("finetuned", load("finetuned"))

    data = [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels.tolist())]
    arguments = TrainingArguments(
        work / "runs", use_cpu=True, report_to=[], max_steps=1, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(work / "by_remote_trainer")
    keep("by_remote_trainer_here", model)
    keep("by_remote_trainer", load("by_remote_trainer"))

    base = load("base", AutoModel)
    with_head = load("base")
    with_head.save_pretrained(work / "base_with_head")
    back = load("base_with_head", AutoModel)
    back.save_pretrained(work / "base_again")
    again = load("base_again", AutoModel)
    facts["base in head"] = all(torch.equal(w, with_head.qkvit.state_dict()[n]) for n, w in base.state_dict().items())
    inner = load("by_trainer").base_model  # of a class that no Auto class has made there
    inner.save_pretrained(work / "taken_out")
    taken_out = load("taken_out", AutoModel)
    facts["taken out"] = all(torch.equal(w, taken_out.state_dict()[n]) for n, w in inner.state_dict().items())
    facts["base again"] = all(torch.equal(w, again.state_dict()[n]) for n, w in base.state_dict().items())

    image = Image.new("RGB", (50, 70), "red")
    for name in ("classifier", "finetuned"):
        classify = pipeline("image-classification", model=str(work / name), trust_remote_code=True)
        facts[f"{name} answers"] = [sorted(answer) for answer in classify(image, top_k=2)]
        extract = pipeline("image-feature-extraction", model=str(work / name), trust_remote_code=True)
        facts[f"{name} features"] = list(torch.tensor(extract(image)).shape)

    bad = work / "damaged"
    model.save_pretrained(bad)
    (bad / "model.safetensors").write_bytes(b"damaged")
    try:
        load("damaged")
    except OSError as error:
        facts["damaged"] = str(error)
    try:
        AutoConfig.from_pretrained(work / "classifier", trust_remote_code=True, hidden_size="big")
    except ValueError as error:
        facts["bad field"] = str(error)


def second():
    for name in ("finetuned", "by_remote_trainer", "base_with_head"):
        keep(f"{name}_second", load(name))


{"first": first, "second": second}[sys.argv[2]]()
facts["imported"] = [name for name in sys.modules if name.partition(".")[0] == "qkvit"]
(work / f"{sys.argv[2]}.json").write_text(json.dumps(facts))
'''


def without_the_package(start_python, work: Path, step: str) -> dict:
    """Run a step of the script in a clean process, with an empty cache of remote code."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "HF_HOME": str(work / "hub"),
        "HF_MODULES_CACHE": str(work / f"modules_{step}"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = work / "script.py"
    script.write_text(SCRIPT)
    run = start_python(script, work, step, folder=work, environment=environment)()
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads((work / f"{step}.json").read_text())


def run_one_step(model, folder: Path) -> Trainer:
    data = [{"pixel_values": torch.rand(3, *IMAGE_SIZE), "labels": label} for label in (0, 1)]
    arguments = TrainingArguments(
        folder, use_cpu=True, report_to=[], max_steps=1, save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def work(start_python, tiny_model, tmp_path_factory) -> Path:
    """A folder with saved models, and what became of them in two processes without the package."""
    work = tmp_path_factory.mktemp("shipping")
    pixels = torch.rand(2, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    torch.save(pixels, work / "pixels.pt")
    classifier, trained = tiny_model(**FIELDS), tiny_model(**FIELDS, seed=1)
    classifier.save_pretrained(work / "classifier")
    processor = work / "classifier" / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    run_one_step(trained, work / "runs_here").save_model(work / "by_trainer")
    tiny_model(QKViTModel, **FIELDS).save_pretrained(work / "base")
    for name, model in (("classifier", classifier), ("by_trainer", trained)):
        with torch.no_grad():
            torch.save({"logits": model.eval()(pixels).logits, "weights": model.state_dict()}, work / f"{name}.pt")
    without_the_package(start_python, work, "first")
    without_the_package(start_python, work, "second")
    return work


@pytest.fixture(scope="module")
def facts(work) -> dict:
    return json.loads((work / "first.json").read_text())


def assert_same_model(work: Path, found: str, expected: str) -> None:
    """Weights equal to the bit; logits but for the last bits, which depend on where the tensors lie in memory."""
    found, expected = torch.load(work / f"{found}.pt"), torch.load(work / f"{expected}.pt")
    assert found["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-6)


# ---- where qkvit is not installed


def test_nothing_of_the_package_is_imported_there(work):
    for step in ("first", "second"):
        assert json.loads((work / f"{step}.json").read_text())["imported"] == []


def test_a_saved_model_loads_with_its_weights_and_logits(work, facts):
    assert facts["class"] == "QKViTForImageClassification"
    assert facts["module"].startswith("transformers_modules")
    assert_same_model(work, "classifier.found", "classifier")


def test_a_model_saved_by_trainer_loads_with_its_weights_and_logits(work):
    assert_same_model(work, "by_trainer.found", "by_trainer")


def test_every_head_loads(facts):
    assert facts["heads"] == ["QKViTModel", "QKViTForMaskedImageModeling", "QKViTBackbone"]


def test_maps_and_keys_are_given(facts):
    assert facts["maps"] == [[2, 2, 3 + 24, 3 + 24]] * 3
    assert facts["keys"] == [False, False, True]


def test_a_step_of_fine_tuning_lowers_the_loss(facts):
    before, after = facts["loss"]
    assert after < before


def test_a_fine_tuned_model_is_saved_and_loads_again(work):
    assert_same_model(work, "finetuned.found", "finetuned_here.found")


def test_a_model_saved_by_trainer_there_loads_again(work):
    assert_same_model(work, "by_remote_trainer.found", "by_remote_trainer_here.found")


@pytest.mark.parametrize("name", ["finetuned", "by_remote_trainer"])
def test_what_was_saved_there_loads_in_yet_another_process(work, name):
    assert_same_model(work, f"{name}_second.found", f"{name}_here.found")


def test_a_base_model_goes_into_a_head_and_back(facts, work):
    assert facts["base in head"]
    assert facts["base again"]
    assert facts["taken out"]
    base = load_file(work / "base" / "model.safetensors")
    again = load_file(work / "base_again" / "model.safetensors")
    assert base.keys() == again.keys()
    assert all(torch.equal(base[name], again[name]) for name in base)


def test_the_image_processor_is_carried_along(facts, work):
    assert facts["processor"] == [0.1, 0.2, 0.3]
    for name in ("finetuned", "by_remote_trainer"):
        assert json.loads((work / name / "preprocessor_config.json").read_text())["image_mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("name", ["classifier", "finetuned"])
def test_the_pipelines_take_it(facts, name):
    assert facts[f"{name} answers"] == [["label", "score"]] * 2
    assert facts[f"{name} features"] == [1, 3 + 24, 32]


def test_errors_are_as_clear_there(facts):
    assert "model.safetensors is damaged or cut short" in facts["damaged"]
    assert facts["bad field"].startswith("hidden_size='big' is not an integer")


def test_where_qkvit_is_installed_what_was_saved_there_is_our_own_class(work):
    model = AutoModelForImageClassification.from_pretrained(work / "finetuned")
    assert type(model) is QKViTForImageClassification
    expected = torch.load(work / "finetuned_here.found.pt")
    with torch.no_grad():
        torch.testing.assert_close(model(torch.load(work / "pixels.pt")).logits, expected["logits"], rtol=0, atol=1e-6)


# ---- what is written


@pytest.mark.parametrize("name", ["classifier", "by_trainer", "base", "finetuned", "by_remote_trainer", "base_again"])
def test_a_saved_folder_holds_the_code_the_map_of_classes_and_the_image_processor(work, name):
    files = {path.name for path in (work / name).iterdir()}
    assert files >= {*flat_sources(), "config.json", "model.safetensors", "preprocessor_config.json"}
    auto_map = json.loads((work / name / "config.json").read_text())["auto_map"]
    assert {key: value.rpartition("--")[2] for key, value in auto_map.items()} == AUTO_MAP


def test_the_shipped_files_import_each_other_and_nothing_of_the_package():
    sources = flat_sources()
    for text in sources.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert not any(alias.name.partition(".")[0] == "qkvit" for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level or node.module.partition(".")[0] != "qkvit"
                if node.level:
                    assert node.level == 1
                    assert f"{node.module}.py" in sources


def test_the_files_that_load_first_are_there():
    assert {reference.partition(".")[0] + ".py" for reference in AUTO_MAP.values()} <= flat_sources().keys()


def test_every_class_of_the_map_is_defined_where_it_says():
    sources = flat_sources()
    for reference in AUTO_MAP.values():
        module, _, name = reference.partition(".")
        classes = {node.name for node in ast.walk(ast.parse(sources[f"{module}.py"])) if isinstance(node, ast.ClassDef)}
        assert name in classes


def test_a_model_that_is_trained_on_keeps_no_trace_of_shipping(tiny_model, tmp_path):
    """Saving sets `auto_map` in the configuration that is written; saving twice writes the same."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


@pytest.fixture
def uploaded(monkeypatch) -> list[str]:
    """The names of the files of an upload, which is caught."""
    uploaded: list[str] = []

    class Api:
        def create_repo(self, repo_id, **kwargs):
            return type("Repo", (), {"repo_id": repo_id})

        def create_commit(self, operations, **kwargs):
            uploaded.extend(operation.path_in_repo for operation in operations)

    for module in (hub, sys.modules["transformers.modeling_utils"], sys.modules["transformers.configuration_utils"]):
        monkeypatch.setattr(module, "hf_api", Api, raising=False)
    card = type("Card", (), {"save": lambda self, path: Path(path).write_text("card")})
    for module in (hub, sys.modules["transformers.modeling_utils"]):
        monkeypatch.setattr(module, "create_and_tag_model_card", lambda *args, **kwargs: card(), raising=False)
    return uploaded


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained", "save_pretrained over a saved one"])
def test_what_is_pushed_is_complete(tiny_model, tmp_path, uploaded, way):
    """What is in the upload is what a saved folder holds."""
    model = tiny_model()
    if way == "save_pretrained over a saved one":
        model.save_pretrained(tmp_path / "model")
    if way == "push_to_hub":
        model.push_to_hub("someone/something")
    else:
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="someone/something")
    weights = {"model.safetensors", "SHA256SUMS"}
    assert set(uploaded) >= {*flat_sources(), *weights, "config.json", "preprocessor_config.json"}


def test_the_code_and_the_image_processor_are_pushed_with_a_configuration(tiny_config, tmp_path, uploaded):
    tiny_config().save_pretrained(str(tmp_path), push_to_hub=True, repo_id="someone/something")
    assert set(uploaded) == {*flat_sources(), "config.json", "preprocessor_config.json"}


def test_a_base_model_of_code_that_came_with_a_model_is_pushed_with_it(tiny_model, tmp_path, uploaded, code_of_models):
    tiny_model().save_pretrained(tmp_path / "model")
    remote = get_class_from_dynamic_module("modeling_qkvit.QKViTForImageClassification", str(tmp_path / "model"))
    inner = remote.from_pretrained(tmp_path / "model").base_model
    inner.save_pretrained(tmp_path / "inner", push_to_hub=True, repo_id="someone/something")
    assert set(uploaded) >= {*flat_sources(), "config.json", "preprocessor_config.json"}


def test_a_class_of_the_user_s_own_keeps_its_place_in_the_map(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "my_head.py").write_text(
        "from qkvit import QKViTForImageClassification\n\n\nclass MyHead(QKViTForImageClassification):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from my_head import MyHead

    MyHead.register_for_auto_class("AutoModelForImageClassification")
    for _ in range(2):
        MyHead(tiny_config()).save_pretrained(tmp_path / "mine")
        found = json.loads((tmp_path / "mine" / "config.json").read_text())["auto_map"]
        assert found == {**AUTO_MAP, "AutoModelForImageClassification": "my_head.MyHead"}
