"""Stands in for transformers' `tests/exporters/test_export.py`, which its source distribution leaves out.

It holds no test: `ModelTesterMixin` inherits from the class, so the name must exist. Export is therefore NOT
covered by this run, for transformers' models and ours alike.
"""


class ExportTesterMixin:
    pass
