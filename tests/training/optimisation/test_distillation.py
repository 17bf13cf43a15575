"""Distillation: the loss is its formula, and the teacher sees the student's pixels in its own way."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from qkvit import QKViTForImageClassification
from qkvit.training import TrainingRefusedError, train
from qkvit.training.models import LossSettings
from qkvit.training.optimisation.distillation import Teacher, distillation_loss, open_teacher, parts
from qkvit.training.recipe import Distillation

DIGITS = [str(digit) for digit in range(10)]
BACKWARDS = tuple(reversed(DIGITS))
OURS = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """transformers' ViT with 12 pixels, other means and the digits in another order."""

    def make(names=BACKWARDS, **fields):
        torch.manual_seed(1)
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=12,
            patch_size=4, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
            initializer_range=0.5, **fields,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("teacher")
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessorPil(
            size={"height": 12, "width": 12}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
        ).save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_losses_are_their_formulas(tau):
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    hard = distillation_loss(student, teacher, Distillation(kind="hard", temperature=tau))
    expected = -sum(math.log(student[i].softmax(0)[teacher[i].argmax()]) for i in range(5)) / 5
    assert hard.item() == pytest.approx(expected, rel=1e-5)
    soft = distillation_loss(student, teacher, Distillation(kind="soft", temperature=tau))
    p, q = (teacher / tau).softmax(-1), (student / tau).softmax(-1)
    assert soft.item() == pytest.approx(tau**2 * (p * (p / q).log()).sum().item() / 5, rel=1e-5)
    assert distillation_loss(teacher, teacher, Distillation(kind="soft")) == pytest.approx(0, abs=1e-6)


def test_each_token_learns_from_its_own(tiny_model):
    """DeiT: labels reach the class token's classifier alone, the teacher the distillation token's alone."""
    model = tiny_model(QKViTForImageClassification, use_distillation_token=True)
    own, distilled = parts(model(pixel_values=torch.rand(2, 3, 16, 16)))
    assert own.shape == distilled.shape == (2, 5)
    for logits, learns, does_not in (
        (own, model.classifier, model.distillation_classifier),
        (distilled, model.distillation_classifier, model.classifier),
    ):
        model.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        assert learns.weight.grad.abs().sum() > 0
        assert does_not.weight.grad is None or not does_not.weight.grad.any()


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_of_a_step(tiny_model, teacher_folder, token, kind):
    model = tiny_model(QKViTForImageClassification, num_labels=10, use_distillation_token=token)
    settings = Distillation(teacher_folder(), kind, alpha=0.3, temperature=2.0)
    teacher = open_teacher(settings, DIGITS).prepare(OURS, torch.no_grad)
    pixels, labels = torch.rand(4, 3, 16, 16) * 2 - 1, torch.tensor([1, 2, 3, 4])
    outputs = model(pixel_values=pixels)

    reference = ViTForImageClassification.from_pretrained(settings.teacher).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    seen = F.interpolate(((pixels + 1) / 2 - mean) / std, (12, 12), mode="bicubic", antialias=True)
    with torch.no_grad():
        wanted = reference(pixel_values=seen).logits.flip(-1)  # its classes run backwards
    torch.testing.assert_close(teacher(pixels), wanted, atol=1e-4, rtol=1e-4)
    assert len(set(wanted.argmax(-1).tolist())) > 1, "a teacher that tells images apart"
    classes = model.classifier(model.qkvit(pixels).pooler_output)
    distilled = model.distillation_classifier(model.qkvit(pixels).last_hidden_state[:, 1]) if token else classes
    expected = 0.7 * F.cross_entropy(classes, labels) + 0.3 * distillation_loss(distilled, wanted, settings)
    loss = teacher.loss(outputs, pixels, labels, LossSettings(model.config))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_a_run_with_a_teacher_learns_from_it_and_keeps_nothing_of_it(tiny, teacher_folder, tmp_path):
    """All of the loss is the teacher's: on the digits, the student comes to say what it says."""
    from sklearn.datasets import load_digits

    folder = teacher_folder()
    before = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    recipe = tiny(
        {"model": {"config": {"use_distillation_token": True}}},
        {"distillation": {"teacher": folder, "kind": "soft", "alpha": 1.0}},
        {"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 60, "learning_rate": 5e-3}},
        {"arguments": {"save_strategy": "no", "logging_steps": 20}},
    )
    train(recipe)
    log = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert log["steps"] == 60
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert not [name for name in student.state_dict() if "teacher" in name]
    after = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pixels = torch.from_numpy(load_digits().images[:400]).float()[:, None].expand(-1, 3, -1, -1) / 8 - 1
    teacher = open_teacher(Distillation(folder), DIGITS).prepare(OURS, torch.no_grad)
    with torch.no_grad():
        _, distilled = parts(student.eval()(pixel_values=pixels))
    kept = distillation_loss(distilled, teacher(pixels), Distillation(kind="soft"))
    unknowing = distillation_loss(torch.zeros(400, 10), teacher(pixels), Distillation(kind="soft"))
    assert kept < unknowing / 2  # a third or less, of 16 seeds and two versions of torch


def test_a_resumed_run_is_the_same_and_another_teacher_is_refused(
    tiny, busy, teacher_folder, tmp_path, weights, raises_sentence
):
    folder = teacher_folder()

    def recipe(name):
        return tiny(busy, {"distillation": {"teacher": folder}, "arguments": {"output_dir": str(tmp_path / name)}})

    train(recipe("whole"))
    train(recipe("run"))
    (tmp_path / "run" / "checkpoint-9" / "whole.json").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    train(recipe("run"), resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    (tmp_path / "run" / "metrics.json").unlink()
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(folder)
    with raises_sentence(TrainingRefusedError, "data (teacher)"):
        train(recipe("run"), resume=True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (DIGITS[:7], ["7 classes", "the data 10"]),
        ([f"digit {digit}" for digit in DIGITS], ["no class called '0'", "'digit 0'", "by_order"]),
    ],
)
def test_a_teacher_of_other_classes_is_refused(tiny, tmp_path, teacher_folder, raises_sentence, names, words):
    recipe = tiny(
        {"distillation": {"teacher": teacher_folder(names)}, "arguments": {"output_dir": str(tmp_path / "r")}}
    )
    with raises_sentence(TrainingRefusedError, *words):
        train(recipe)
    assert not (tmp_path / "r").exists()


def test_classes_may_be_matched_by_their_order(teacher_folder):
    settings = Distillation(teacher_folder([f"digit {digit}" for digit in DIGITS]), match_labels="by_order")
    assert open_teacher(settings, DIGITS).order is None


def test_a_teacher_without_a_classifier_or_a_folder_is_refused(teacher_folder, tmp_path, raises_sentence):
    model = ViTForImageClassification.from_pretrained(teacher_folder())
    model.vit.config.id2label, model.vit.config.label2id = dict(enumerate(DIGITS)), {d: int(d) for d in DIGITS}
    model.vit.save_pretrained(tmp_path / "body")
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path / "body")
    with raises_sentence(TrainingRefusedError, "lacks classifier", "trained to classify"):
        open_teacher(Distillation(str(tmp_path / "body")), DIGITS)
    with pytest.raises(TrainingRefusedError, match="nowhere cannot be read"):
        open_teacher(Distillation(str(tmp_path / "nowhere")), DIGITS)


def test_a_teacher_never_trains(tiny_model):
    processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    teacher = Teacher(tiny_model(num_labels=10).train(), processor, Distillation())
    assert not teacher.model.training
    assert not teacher(torch.rand(1, 3, 16, 16)).requires_grad


def test_a_teacher_with_pixels_of_another_kind_is_refused(teacher_folder, raises_sentence):
    folder = teacher_folder(DIGITS)
    ViTImageProcessorPil(size={"height": 12, "width": 12}, rescale_factor=1 / 127.5).save_pretrained(folder)
    with raises_sentence(TrainingRefusedError, "the image processor of the teacher", "another teacher"):
        open_teacher(Distillation(folder), DIGITS)
