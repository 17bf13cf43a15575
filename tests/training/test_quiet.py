"""Other libraries are quiet inside, and as loud as before afterwards."""

import contextlib

import pytest
from transformers.utils import logging

from qkvit.training.quiet import quiet_libraries


@pytest.mark.parametrize("bars", [True, False])
def test_what_the_user_had_set_is_set_again(bars):
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with contextlib.suppress(KeyError), quiet_libraries():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bars
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
