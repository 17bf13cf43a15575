"""Stands in for transformers' `tests/pipelines/test_pipelines_image_classification.py`, which its source
distribution leaves out. `PipelineTesterMixin` brings the tiny model and calls the two methods below; the
pictures are drawn here, so that nothing is downloaded.
"""

import unittest

import numpy as np
from PIL import Image
from transformers import ImageClassificationPipeline


class ImageClassificationPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **processors):
        pipeline = ImageClassificationPipeline(model=model, image_processor=image_processor, dtype=dtype, top_k=2)
        pixels = np.random.default_rng(0)
        images = [Image.fromarray(pixels.integers(0, 256, size, dtype=np.uint8)) for size in ((40, 60, 3), (33, 20))]
        return pipeline, images  # one in colour, one grey; neither square

    def run_pipeline_test(self, pipeline, examples):
        labels = set(pipeline.model.config.id2label.values())
        alone = [pipeline(image) for image in examples]
        for answer in alone:
            assert len(answer) == 2
            assert answer[0]["score"] >= answer[1]["score"]
            for line in answer:
                assert set(line) == {"label", "score"}
                assert line["label"] in labels
                assert 0 <= line["score"] <= 1
        together = pipeline(examples, batch_size=2)
        for one, other in zip(alone, together, strict=True):
            for line, other_line in zip(one, other, strict=True):
                assert abs(line["score"] - other_line["score"]) < 1e-2  # half precision runs here too
        assert len(pipeline(examples[0], top_k=1)) == 1
