"""transformers' common suites on our four classes."""

import unittest

import skips
from common_tester import TINY, BackboneSuite, ClassifierSuite, PipelineSuite, VisionSuite
from transformers.models.auto import modeling_auto

from qkvit import (
    QKViTBackbone,
    QKViTConfig,
    QKViTForImageClassification,
    QKViTForMaskedImageModeling,
    QKViTModel,
)

# The suites tell by a class's NAME, in these tables, whether it is a base model (has no loss), a classifier
# (is given labels) and so on. A model inside transformers stands there; ours registers through the Auto
# classes, so it is added here, for the tests alone.
for table, model_class in (
    (modeling_auto.MODEL_MAPPING_NAMES, QKViTModel),
    (modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, QKViTBackbone),
    (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, QKViTForImageClassification),
    (modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES, QKViTForMaskedImageModeling),
):
    table.setdefault(QKViTConfig.model_type, model_class.__name__)


class QKViT:
    config_class = QKViTConfig
    config_fields = TINY
    skips = skips.QKVIT


class QKViTModelTest(PipelineSuite, QKViT, VisionSuite, unittest.TestCase):
    all_model_classes = (QKViTModel,)
    pipeline_model_mapping = {"image-feature-extraction": QKViTModel}


class QKViTForImageClassificationTest(ClassifierSuite, PipelineSuite, QKViT, VisionSuite, unittest.TestCase):
    all_model_classes = (QKViTForImageClassification,)
    pipeline_model_mapping = {"image-classification": QKViTForImageClassification}


class QKViTForMaskedImageModelingTest(QKViT, VisionSuite, unittest.TestCase):
    all_model_classes = (QKViTForMaskedImageModeling,)


class QKViTBackboneTest(QKViT, BackboneSuite, unittest.TestCase):
    all_model_classes = (QKViTBackbone,)
    config_fields = TINY | {"out_indices": [1, 2]}


# The options that bring parameters, tables or random numbers of their own; the classes above run the defaults.
OPTIONS = {
    "hidden_act": "silu",
    "mlp_type": "swiglu",
    "norm_type": "rmsnorm",
    "qk_norm": True,
    "key_bias": False,
    "layer_scale_init_value": 0.1,
    "position_embedding": "rope2d",
    "num_register_tokens": 3,
    "use_pre_norm": True,
    "pooling": "attention",
    "pooling_coverage": "patches",
    "pooler_act": "tanh",
    "pooler_size": 24,
    "norm_position": "after_pooling",
    "patch_bias": False,
}


# Those that exclude one of these, or stand beside it.
LEARNED_POSITION_OPTIONS = {
    "position_coverage": "all",
    "position_antialias": True,
    "num_register_tokens": 3,
    "use_mask_token": True,
    "norm_position": "none",
}


class QKViTModelOptionsTest(QKViT, VisionSuite, unittest.TestCase):
    all_model_classes = (QKViTModel,)
    config_fields = TINY | LEARNED_POSITION_OPTIONS
    num_prefix_tokens = 4


class QKViTForImageClassificationOptionsTest(QKViT, VisionSuite, unittest.TestCase):
    all_model_classes = (QKViTForImageClassification,)
    config_fields = TINY | OPTIONS
    num_prefix_tokens = 4
