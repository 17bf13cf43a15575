"""Philox gives the published numbers; what is drawn depends on nothing but what it is for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit.training.augmentation.counter_random import Purpose, philox, seed_of, uniform

# The known answers of Random123 (Salmon et al. 2011) for philox4x32-10: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_known_answers(counter, key, expected):
    assert philox(torch.tensor(words(counter)), tuple(words(key))).tolist() == words(expected)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_a_number_does_not_depend_on_its_company(indices, seed, count):
    keys = torch.tensor([[3, index, 0] for index in indices])
    together = uniform(seed, Purpose.FLIP, keys, count)
    assert together.min() >= 0
    assert together.max() < 1
    alone = torch.cat([uniform(seed, Purpose.FLIP, keys[i : i + 1], count) for i in range(len(indices))])
    assert together.equal(alone)
    assert together.equal(uniform(seed, Purpose.FLIP, keys, count + 5)[:, :count])


@pytest.mark.parametrize("other", [(1, Purpose.FLIP, [0, 0, 0]), (0, Purpose.CROP, [0, 0, 0])])
@pytest.mark.parametrize("key", [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
def test_seed_purpose_epoch_image_and_repeat_all_count(other, key):
    draws = [uniform(0, Purpose.FLIP, torch.tensor([[0, 0, 0]]), 4), uniform(0, Purpose.FLIP, torch.tensor([key]), 4)]
    draws.append(uniform(*other[:2], torch.tensor([other[2]]), 4))
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 3


def test_numbers_are_uniform_and_independent():
    keys = torch.stack([torch.zeros(20000), torch.arange(20000), torch.zeros(20000)], dim=1).long()
    drawn = uniform(7, Purpose.MIX, keys, 4).double()
    torch.testing.assert_close(drawn.mean(0), torch.full((4,), 0.5).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T) * 12, torch.eye(4).double(), atol=0.03, rtol=0)
    neighbours = torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1]
    assert neighbours.abs() < 0.03


def test_seeds_for_generators_differ_and_fit():
    seeds = {seed_of(0, Purpose.STEP, step, micro) for step in range(50) for micro in range(3)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
