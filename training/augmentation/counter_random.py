"""Random numbers by counter: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A number depends on what it is for (seed, purpose, epoch, image, repeat) and on nothing else: not on the order of the
images, on how many worker processes or ranks there are, or on where a run was resumed. It is computed with whole
numbers alone, so it is the same on every device.

Shapes: B samples, K numbers for each.
"""

from enum import IntEnum

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Purpose(IntEnum):
    """What numbers are drawn for: each has a stream of its own, so that switching one off changes no other."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    COLOUR = 3
    THREE_AUGMENT = 4
    RAND_AUGMENT = 5
    WARP = 6
    ERASE = 7
    MIX = 8
    DROPOUT = 9
    STEP = 10
    AUTO_AUGMENT = 11


def philox(counter: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    """Four random words of 32 bits for each counter of four words.

    Args:
        counter: (..., 4) int64, each word in [0, 2^32).
        key: Two words.

    Returns:
        (..., 4) int64, each in [0, 2^32).

    Example:

    ```python
    >>> [f"{word:08x}" for word in philox(torch.zeros(4, dtype=torch.int64), (0, 0)).tolist()]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    ```
    """
    a, b, c, d = counter.unbind(-1)
    first, second = key
    for _ in range(_ROUNDS):
        # A product of two words may exceed 2^63 and wraps around; shifting and masking still gives its upper word.
        product_a, product_c = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((product_c >> 32) & _WORD) ^ b ^ first,
            product_c & _WORD,
            ((product_a >> 32) & _WORD) ^ d ^ second,
            product_a & _WORD,
        )
        first, second = (first + _WEYL[0]) & _WORD, (second + _WEYL[1]) & _WORD
    return torch.stack([a, b, c, d], dim=-1)


def uniform(seed: int, purpose: int, keys: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for samples.

    Args:
        seed: Of the run, in [0, 2^32).
        purpose: What they are for: a `Purpose`.
        keys: (B, 3) int64: what identifies a sample, such as (epoch, index, repeat), each in [0, 2^32).
        count: K, how many for each.

    Returns:
        (B, K) float32, multiples of 2^-24.

    Example:

    ```python
    >>> keys = torch.tensor([[0, 5, 0], [0, 6, 0]])
    >>> both = uniform(0, Purpose.CROP, keys, 3)
    >>> both[1:].equal(uniform(0, Purpose.CROP, keys[1:], 3))
    True

    ```
    """
    blocks = -(-count // 4)
    block = torch.arange(blocks, device=keys.device).expand(len(keys), blocks)
    counter = torch.cat([keys.unsqueeze(1).expand(-1, blocks, -1), block.unsqueeze(-1)], dim=-1)
    words = philox(counter, (seed & _WORD, int(purpose))).flatten(1)[:, :count]
    return (words >> 8).to(torch.float32) * 2.0**-24


def seed_of(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A seed of 62 bits for a generator, from up to four whole numbers.

    Example:

    ```python
    >>> seed_of(0, Purpose.ORDER, 1) == seed_of(0, Purpose.ORDER, 2)
    False

    ```
    """
    counter = torch.tensor([*numbers, *[0] * (4 - len(numbers))], dtype=torch.int64) & _WORD
    low, high = philox(counter, (seed & _WORD, int(purpose)))[:2].tolist()
    return (high << 30) ^ low
