"""Stands in for transformers' `tests/pipelines/test_pipelines_image_feature_extraction.py`, which its
source distribution leaves out. `PipelineTesterMixin` brings the tiny model and calls the two methods below;
the pictures are drawn here, so that nothing is downloaded.
"""

import unittest

import numpy as np
import torch
from PIL import Image
from transformers import ImageFeatureExtractionPipeline


class ImageFeatureExtractionPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **processors):
        pipeline = ImageFeatureExtractionPipeline(model=model, image_processor=image_processor, dtype=dtype)
        pixels = np.random.default_rng(0)
        images = [Image.fromarray(pixels.integers(0, 256, size, dtype=np.uint8)) for size in ((40, 60, 3), (33, 20))]
        return pipeline, images  # one in colour, one grey; neither square

    def run_pipeline_test(self, pipeline, examples):
        width = pipeline.model.config.hidden_size
        for image in examples:
            features = np.array(pipeline(image))  # (1, N, C)
            assert features.ndim == 3
            assert (features.shape[0], features.shape[2]) == (1, width)
            assert np.isfinite(features).all()
            assert isinstance(pipeline(image, return_tensors=True), torch.Tensor)
        together = pipeline(examples, batch_size=2)
        assert len(together) == len(examples)
        pooled = np.array(pipeline(examples[0], pool=True))  # (1, C)
        assert pooled.shape == (1, width)
