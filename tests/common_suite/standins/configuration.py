"""Stands in for transformers' `tests/utils/test_configuration_utils.py`, which its source distribution
leaves out.

`ConfigTester` builds a config from `config_common_kwargs` and asks for every value back. Here: each public
field that `PreTrainedConfig` declares, set to something else than its default.
"""

config_common_kwargs = {
    "architectures": ["AModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "cat", 1: "dog", 2: "fox"},
    "is_encoder_decoder": True,
    "label2id": {"cat": 0, "dog": 1, "fox": 2},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
