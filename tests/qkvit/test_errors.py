"""What others say of a user's mistakes becomes one sentence; what the machine refuses stays what it is."""

import errno

import pytest
from safetensors import SafetensorError

from qkvit.errors import UserError, sentences


def test_a_damaged_file_of_weights_is_one_sentence_with_a_way_out():
    said = (
        r"^model: a file of weights is damaged or cut short \(Error while deserializing header\); copy or download it"
    )
    with pytest.raises(UserError, match=said), sentences("model: "):
        raise SafetensorError("Error while deserializing header")


def test_a_full_disk_is_not_taken_for_damaged_weights():
    with pytest.raises(OSError) as caught, sentences("model: "):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
