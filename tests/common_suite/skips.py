"""The suite tests that we skip, each with its reason, per family. Everything else that a run shows as
skipped was skipped by transformers' own suites, whose reasons are counted as they come.

A reason here has to be one that a maintainer of transformers would accept, so it says what the model is,
not that the test fails.
"""

VIT: dict[str, str] = {}

DINOV2_BACKBONE: dict[str, str] = {}

QKVIT: dict[str, str] = {}

# Tests that the suites themselves skip for ours since there is nothing to test, while transformers' ViT
# passes them. They do not count as ViT doing better.
_ONE_LAYOUT = (
    "the parameters of QKViT have had the same names since its first version, so there is no conversion of"
    " checkpoint names to load or to reverse; ViT has one for checkpoints of transformers 4"
)
NOTHING_TO_TEST: dict[str, str] = {
    "test_can_load_from_already_mapped_keys": _ONE_LAYOUT,
    "test_reverse_loading_mapping": _ONE_LAYOUT,
}
