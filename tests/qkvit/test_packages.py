"""A missing package is told before any work is done."""

import pytest

from qkvit.errors import UserError
from qkvit.packages import check_packages


def test_packages_that_are_there_are_not_asked_for():
    check_packages({"torch": "torch", "json": "json"})
    with pytest.raises(UserError, match="not_a_package cannot be imported; run: pip install its-name"):
        check_packages({"torch": "torch", "not_a_package": "its-name"})


def test_a_package_of_several_modules_is_named_once():
    with pytest.raises(UserError, match=r"^no_a, no_b, no_c cannot be imported; run: pip install one other$"):
        check_packages({"no_a": "one", "no_b": "one", "no_c": "other"})
