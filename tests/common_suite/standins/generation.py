"""Stands in for transformers' `tests/generation/test_utils.py`, which its source distribution leaves out.

It holds no test: the models here do not generate text, and one suite test asks that their test class does not
inherit from this mixin.
"""


class GenerationTesterMixin:
    pass
