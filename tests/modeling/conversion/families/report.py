"""The table of docs/families.md, from the tests' own cases: `python tests/modeling/conversion/families/report.py`.

The largest difference of any hidden state, pooled output or logit of a family's cases, at all sizes, relative to the
largest entry of that tensor.
"""

import contextlib
import importlib
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def cases() -> dict[str, list]:
    """Family -> its cases, from the test files beside this one."""
    found: dict[str, list] = {}
    for path in sorted(HERE.glob("test_*.py")):
        with contextlib.suppress(pytest.skip.Exception):  # timm is not here
            for case in getattr(importlib.import_module(path.stem), "CASES", ()):
                found.setdefault(case.family, []).append(case)
    return dict(sorted(found.items()))


def main() -> None:
    import torch
    from harness import check_attention, check_outputs
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    lines = [
        "| family | cases | outputs, float64 | outputs, float32 | Q, K, V, float64 |",
        "|---|---|---|---|---|",
    ]
    for family, own in cases().items():
        double = max(check_outputs(case, torch.float64) for case in own)
        single = max(check_outputs(case, torch.float32) for case in own)
        attention = max(getattr(case, "check_attention", partial(check_attention, case))() for case in own)
        options = "; ".join(case.option for case in own)
        lines.append(f"| `{family}` | {options} | {double:.1e} | {single:.1e} | {attention:.1e} |")
    print("\n".join(lines))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(HERE))
    main()
