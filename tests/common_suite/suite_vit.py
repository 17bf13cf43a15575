"""transformers' common suites on transformers' own ViT: what ours is measured against.

ViT has no backbone class. Dinov2's stands beside ours as a reference and is not part of the comparison.
"""

import unittest

import skips
from common_tester import TINY, BackboneSuite, ClassifierSuite, PipelineSuite, VisionSuite
from transformers import (
    Dinov2Backbone,
    Dinov2Config,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)


class ViT:
    config_class = ViTConfig
    config_fields = TINY | {"encoder_stride": TINY["patch_size"]}
    skips = skips.VIT


class ViTModelTest(PipelineSuite, ViT, VisionSuite, unittest.TestCase):
    all_model_classes = (ViTModel,)
    pipeline_model_mapping = {"image-feature-extraction": ViTModel}


class ViTForImageClassificationTest(ClassifierSuite, PipelineSuite, ViT, VisionSuite, unittest.TestCase):
    all_model_classes = (ViTForImageClassification,)
    pipeline_model_mapping = {"image-classification": ViTForImageClassification}


class ViTForMaskedImageModelingTest(ViT, VisionSuite, unittest.TestCase):
    all_model_classes = (ViTForMaskedImageModeling,)


class Dinov2BackboneTest(BackboneSuite, unittest.TestCase):
    all_model_classes = (Dinov2Backbone,)
    config_class = Dinov2Config
    # Dinov2 computes its intermediate size. SwiGLU, since one suite test wants every conversion of checkpoint
    # names to find something to convert, and Dinov2 has one for SwiGLU alone.
    config_fields = {k: v for k, v in TINY.items() if k != "intermediate_size"} | {
        "out_indices": [1, 2],
        "use_swiglu_ffn": True,
    }
    skips = skips.DINOV2_BACKBONE
