"""What transformers' common suites need to know of a vision transformer, said once for every family.

A suite file (`suite_vit.py`, `suite_qkvit.py`) says what its config is called and makes one TestCase per
model class, so that the counts are per class. Whatever is overridden here holds for transformers' own
models as well as for ours.
"""

import contextlib
import os
import tempfile
import unittest
from pathlib import Path

import torch
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from tests.test_pipeline_mixin import TRANSFORMERS_TINY_MODEL_PATH, PipelineTesterMixin
from tests.test_training_mixin import TrainingTesterMixin
from torch import nn
from transformers import ViTImageProcessorPil
from transformers.testing_utils import torch_device

# The sizes that transformers' own tests of ViT use: two layers, 15 x 15 patches, both dropouts on.
TINY = {
    "image_size": 30,
    "patch_size": 2,
    "num_channels": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}


class VisionModelTester:
    """Makes tiny configs and inputs. The suites read the attributes by these names."""

    def __init__(self, config_class, config_fields: dict, num_prefix_tokens: int = 1):
        self.config_class = config_class
        self.config_fields = config_fields
        self.batch_size = 13
        self.image_size = config_fields["image_size"]
        self.patch_size = config_fields["patch_size"]
        self.num_channels = config_fields["num_channels"]
        self.hidden_size = config_fields["hidden_size"]
        self.num_hidden_layers = config_fields["num_hidden_layers"]
        self.num_attention_heads = config_fields["num_attention_heads"]
        self.is_training = True
        num_patches = (self.image_size // self.patch_size) ** 2
        self.seq_length = num_patches + num_prefix_tokens
        self.mask_length = num_patches  # length of bool_masked_pos
        self.num_masks = num_patches // 2

    def get_config(self):
        return self.config_class(**self.config_fields)

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": floats_tensor(shape)}


class VisionSuite(ModelTesterMixin):
    """`ModelTesterMixin` and `ConfigTester` for one family."""

    config_class = None
    config_fields: dict = {}
    num_prefix_tokens = 1
    skips: dict[str, str] = {}

    test_resize_embeddings = False  # an image model has no vocabulary
    test_can_init_all_missing_weights_before_2023 = True  # else models are let off by their copyright year

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for test, reason in cls.skips.items():
            setattr(cls, test, unittest.skip(reason)(getattr(cls, test)))

    def setUp(self):
        self.model_tester = VisionModelTester(self.config_class, self.config_fields, self.num_prefix_tokens)
        self.config_tester = ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=False,
            hidden_size=36,
            num_attention_heads=4,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        """The suite's own version asks for `nn.Embedding`; an image model embeds patches, not words."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            embeddings = model.get_input_embeddings()
            assert isinstance(embeddings, nn.Module)
            assert any(module is embeddings for module in model.modules())
            replacement = nn.Identity()
            model.set_input_embeddings(replacement)
            assert model.get_input_embeddings() is replacement
            assert any(module is replacement for module in model.modules())
            output = model.get_output_embeddings()
            assert output is None or isinstance(output, nn.Linear)


class PipelineSuite(PipelineTesterMixin):
    """The pipelines of a class, on a tiny random model that is saved here instead of fetched from the Hub."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for model_class in cls.pipeline_model_mapping.values():
            _save_tiny_model(cls.config_class, cls.config_fields, model_class)

    # The suite lets these two run only where timm is installed, which nothing here needs.
    def test_pipeline_image_feature_extraction(self):
        self.run_task_tests(task="image-feature-extraction")

    def test_pipeline_image_feature_extraction_fp16(self):
        self.run_task_tests(task="image-feature-extraction", dtype="float16")


def _save_tiny_model(config_class, config_fields: dict, model_class):
    folder = Path(TRANSFORMERS_TINY_MODEL_PATH, config_class.model_type, model_class.__name__)
    if folder.exists():
        return
    folder.parent.mkdir(exist_ok=True)
    aside = tempfile.mkdtemp(dir=folder.parent)
    model_class(config_class(**config_fields)).save_pretrained(aside)
    size = {"height": config_fields["image_size"], "width": config_fields["image_size"]}
    ViTImageProcessorPil(size=size).save_pretrained(aside)
    with contextlib.suppress(OSError):  # another worker may have been first
        os.rename(aside, folder)


class ClassifierSuite(TrainingTesterMixin):
    """The overfitting test of `TrainingTesterMixin`, for a classifier of images.

    That test knows text alone so far: it asks its text branch for one fixed batch, which can as well be
    images. The branch reads `config.vocab_size` on the way, so the config of this one test is given one;
    nothing uses its value.
    """

    model_tester = None  # abstract in the mixin; pytest leaves abstract classes out without a word

    def _get_model_modality(self) -> str:
        return "text"

    def _create_text_training_batch(self, batch_size: int, seq_length: int, vocab_size: int) -> dict:
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        labels = torch.arange(batch_size, device=torch_device)
        return {"pixel_values": inputs["pixel_values"][:batch_size], "labels": labels}

    def test_training_overfit(self):
        get_config = self.model_tester.get_config

        def get_config_with_vocabulary():
            config = get_config()
            config.vocab_size = 1
            return config

        self.model_tester.get_config = get_config_with_vocabulary
        super().test_training_overfit()


class BackboneSuite(BackboneTesterMixin, VisionSuite):
    """`BackboneTesterMixin` beside the suites that every model runs."""

    def test_config(self):
        VisionSuite.test_config(self)
        BackboneTesterMixin.test_config(self)

    def test_retain_grad_hidden_states_attentions(self):
        """The suite's own version takes the first output for a tensor; a backbone's is a tuple."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        config.output_hidden_states = True
        config.output_attentions = True
        for model_class in self.all_model_classes:
            outputs = model_class._from_config(config, attn_implementation="eager").to(torch_device)(**inputs)
            outputs.hidden_states[0].retain_grad()
            outputs.attentions[0].retain_grad()
            outputs.feature_maps[-1].flatten()[0].backward()
            assert outputs.hidden_states[0].grad is not None
            assert outputs.attentions[0].grad is not None
