"""The same image twice: pixel by pixel, or scaled and compressed again."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from .findings import EXAMPLES, Finding
from .image_source import ImageSource
from .inspection import Inspection
from .splits import canonical

SAME_OUTLINE = 3  # bits of 64
SAME_COLOURS = 8  # of 255, in each pixel of the thumbnails


def twice(found: dict[str, Inspection]) -> Iterable[Finding]:
    """The same pixels in two splits, twice in one, or under two labels."""
    splits = list(found)
    places = np.concatenate([_places(number, each) for number, each in enumerate(found.values())])
    digests = np.concatenate([each.digests[each.usable] for each in found.values()])
    if not len(digests):
        return
    _, group, size = np.unique(digests.view("V16").ravel(), return_inverse=True, return_counts=True)
    members: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for which in np.flatnonzero(size[group] > 1):
        members[int(group[which])].append((int(places[which, 0]), int(places[which, 1])))
    across: dict[tuple[int, int], list[str]] = defaultdict(list)
    within: dict[int, list[str]] = defaultdict(list)
    other_labels: list[str] = []
    for same in members.values():
        named = {place: found[splits[place[0]]].source.name_of(place[1]) for place in same}
        for position, place in enumerate(same):
            before = same[:position]
            for number in sorted({number for number, _ in before} - {place[0]}):
                twin = next(other for other in before if other[0] == number)
                across[number, place[0]].append(f"{named[twin]} = {named[place]}")
            twin_here = next((other for other in before if other[0] == place[0]), None)
            if twin_here is not None:
                within[place[0]].append(f"{named[twin_here]} = {named[place]}")
        if len({_label(found[splits[number]].source, index) for number, index in same}) > 1:
            other_labels.append(" = ".join(named[place] for place in same[:3]))
    for (one, other), pairs in sorted(across.items()):
        verb = "image of {} is" if len(pairs) == 1 else "images of {} are"
        yield Finding(
            f"{len(pairs):,} {verb.format(splits[other])} also in {splits[one]}, pixel by pixel",
            f"nothing is done about it, and what is measured on {splits[other]} comes out too good: take them out",
            True,
            pairs[:EXAMPLES],
            len(pairs),
        )
    if other_labels:
        verb = "picture occurs" if len(other_labels) == 1 else "pictures occur"
        yield Finding(
            f"{len(other_labels):,} {verb} with different labels",
            "nothing is done about it: correct the labels",
            True,
            other_labels[:EXAMPLES],
            len(other_labels),
        )
    parted = not any(canonical(split) == "validation" for split in splits)
    for number, pairs in sorted(within.items()):
        verb = "image is" if len(pairs) == 1 else "images are"
        training, leaks = "they count as often as they are there", parted and number == 0
        if leaks:  # images are held out of the first split
            training += (
                "; without a split for validation data.held_out may part copies, and what is measured comes out too"
                " good: take them out"
            )
        yield Finding(
            f"{len(pairs):,} {verb} in {splits[number]} more than once, pixel by pixel",
            training,
            leaks,
            pairs[:EXAMPLES],
            len(pairs),
        )


def _places(number: int, found: Inspection) -> np.ndarray:
    indices = np.flatnonzero(found.usable)
    return np.stack([np.full_like(indices, number), indices], axis=1)


def _label(source: ImageSource, index: int) -> Any:
    if source.class_names is None:
        return None
    indices = source.labels.of(index) if source.multi_label else (int(source.labels[index]),)
    return tuple(sorted(source.class_names[i] for i in indices if i >= 0))


def alike(found: dict[str, Inspection]) -> Iterable[Finding]:
    """Images of two splits with nearly the same outline and colours, and not the same pixels."""
    names = list(found)
    for position, one in enumerate(names):
        for other in names[position + 1 :]:
            pairs = _pairs_alike(found[one], found[other])
            if pairs:
                first, second = found[one].source, found[other].source
                verb = "image of {} looks" if len(pairs) == 1 else "images of {} look"
                yield Finding(
                    f"{len(pairs):,} {verb.format(other)} like one of {one}, though not pixel by pixel",
                    "nothing is done about it: look at them",
                    False,
                    [f"{first.name_of(i)} ~ {second.name_of(j)}" for i, j in pairs[:EXAMPLES]],
                    len(pairs),
                )


def _pairs_alike(one: Inspection, other: Inspection) -> list[tuple[int, int]]:
    """At most one pair for each image of `other`.

    Two outlines that differ in at most three bits agree in at least one quarter of 16 bits: only such are compared.
    """
    indices, found = np.flatnonzero(one.usable), {}
    for quarter in range(4):
        part = slice(2 * quarter, 2 * quarter + 2)
        keys = one.outlines[indices, part].copy().view(np.uint16).ravel()
        order = np.argsort(keys, kind="stable")
        ordered, keys = indices[order], keys[order]
        for index in np.flatnonzero(other.usable):
            if index in found:
                continue
            key = other.outlines[index, part].copy().view(np.uint16)[0]
            low, high = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
            match = _first_alike(one, ordered[low:high], other, int(index))
            if match is not None:
                found[int(index)] = match
    return [(match, index) for index, match in sorted(found.items())]


def _first_alike(one: Inspection, candidates: np.ndarray, other: Inspection, index: int) -> int | None:
    if not len(candidates):
        return None
    bits = np.unpackbits(one.outlines[candidates] ^ other.outlines[index], axis=1).sum(1)
    colours = np.abs(one.thumbnails[candidates].astype(np.int16) - other.thumbnails[index]).max(1)
    same = (one.digests[candidates] == other.digests[index]).all(1)
    good = candidates[(bits <= SAME_OUTLINE) & (colours <= SAME_COLOURS) & ~same]
    return int(good[0]) if len(good) else None
