"""What is wrong with a data set before anybody trains on it, and what training would do about it."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .duplicates import alike, twice
from .findings import EXAMPLES, Finding
from .folder_source import EXTENSIONS
from .image_source import ImageSource
from .inspection import Inspection, inspect
from .opening import kind_of, open_images, splits_in
from .splits import canonical

UNEVEN = 10  # times as many images in the largest class as in the smallest


@dataclass
class Check:
    """What `check` found.

    Args:
        source: Its name.
        splits: For each split: images, unusable, sizes, kinds.
        classes: For each class, how many images each split has.
        findings: Problems first.
        multi_label: An image may have several labels.
    """

    source: str
    splits: dict[str, dict[str, Any]]
    classes: dict[str, dict[str, int]]
    findings: list[Finding]
    multi_label: bool

    @property
    def problems(self) -> list[Finding]:
        """The findings that are problems."""
        return [finding for finding in self.findings if finding.problem]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check(
    source: str | Path,
    splits: list[str] | None = None,
    *,
    label: str | None = None,
    image_size: int = 224,
    num_workers: int = 0,
    started: Callable[[str, int], Callable[[int], None]] | None = None,
) -> Check:
    """Read and decode every image of a data set, and say what is wrong with it.

    Looks for images that cannot be used, the same pixels in two splits (or under two labels), images that look alike
    in two splits (scaled or compressed again), classes that differ between splits or are missing or much smaller than
    others, images without a label, files that are taken for no image; and says what of the rest is converted. Memory is
    about 100 bytes an image.

    Args:
        source: Whatever `open_images` opens.
        splits: Which of its splits. `None`: all.
        label: The column of the labels.
        image_size: Pixels that a model would be trained at.
        num_workers: Processes that decode; 0: this one.
        started: Called with a split's name and size; what it gives is called with the number of images looked at.

    Raises:
        ValueError: the source or a split cannot be opened.

    Example:

    ```python
    >>> from PIL import Image
    >>> colours = {"train/cat": "black", "train/dog": "red", "test/cat": "black", "test/dog": "blue"}
    >>> for place, colour in colours.items():
    ...     Path("zoo", place).mkdir(parents=True)
    ...     Image.new("RGB", (4, 4), colour).save(f"zoo/{place}/1.png")
    >>> found = check("zoo")
    >>> [finding.what for finding in found.problems]
    ['1 image of test is also in train, pixel by pixel']

    ```
    """
    found: dict[str, Inspection] = {}
    for split in splits or splits_in(source):
        streaming = "://" in str(source) or kind_of(str(source)) == "parquet"  # without a copy on the disk
        opened = open_images(source, split=split, label=label, streaming=streaming, multi_label=True)
        name = split or opened.split or "all"
        found[name] = inspect(opened, num_workers, started(name, len(opened)) if started else lambda count: None)
    order = ("train", "validation")  # whatever they are called
    found = dict(sorted(found.items(), key=lambda item: (*(canonical(item[0]) != name for name in order), item[0])))
    findings = [*_unusable(found), *_passed_over(found), *_labels(found), *twice(found), *alike(found)]
    findings += [*_converted(found), *_small(found, image_size)]
    return Check(
        str(source),
        {name: _facts(each) for name, each in found.items()},
        _class_table(found),
        sorted(findings, key=lambda finding: not finding.problem),
        any(each.source.multi_label for each in found.values()),
    )


def _facts(found: Inspection) -> dict[str, Any]:
    sizes = found.sizes[found.usable]
    facts: dict[str, Any] = {"images": len(found.sizes), "unusable": len(found.bad), "kinds": dict(found.kinds)}
    if len(sizes):
        for name, reduce in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
            facts[name] = [int(value) for value in reduce(sizes, axis=0)]
    return facts


def _class_table(found: dict[str, Inspection]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for split, each in found.items():
        for name, count in each.source.class_counts.items():
            table.setdefault(name, {})[split] = count
    return {name: {split: counts.get(split, 0) for split in found} for name, counts in table.items()}


# ---- images


def _unusable(found: dict[str, Inspection]) -> Iterable[Finding]:
    for split, each in found.items():
        if each.bad:
            verb = "image" if len(each.bad) == 1 else "images"
            yield Finding(
                f"{len(each.bad):,} {verb} of {split} cannot be used",
                "on_bad_image: stop ends at the first one; skip takes the next image in its place and lists them",
                True,
                [bad.reason for bad in each.bad[:EXAMPLES]],
                len(each.bad),
            )


def _passed_over(found: dict[str, Inspection]) -> Iterable[Finding]:
    for split, each in found.items():
        endings = each.source.passed_over
        count = endings.total()
        if count:
            verb = "file of {} is" if count == 1 else "files of {} are"
            listed = ", ".join(
                f"{ending or 'without ending'} {number:,}"
                for ending, number in sorted(endings.items(), key=lambda item: (-item[1], item[0]))
            )
            yield Finding(
                f"{count:,} {verb.format(split)} passed over: {listed}",
                f"left out; {each.source.naming_images}",
                not EXTENSIONS.isdisjoint(endings),  # others need not be images
                [],
                count,
            )


def _converted(found: dict[str, Inspection]) -> Iterable[Finding]:
    kinds: Counter[str] = sum((each.kinds for each in found.values()), Counter())
    other = {kind: count for kind, count in kinds.items() if not kind.endswith(" RGB")}
    if other:
        listed = ", ".join(
            f"{count:,} {kind}" for kind, count in sorted(other.items(), key=lambda item: (-item[1], item[0]))
        )
        yield Finding(f"not RGB: {listed}", "they are converted to RGB", False, [], sum(other.values()))
    transparent = sum(each.transparent for each in found.values())
    if transparent:
        yield Finding(f"{transparent:,} with transparency", "they are laid on white", False, [], transparent)
    turned = sum(each.turned for each in found.values())
    if turned:
        yield Finding(f"{turned:,} with an EXIF orientation", "they are turned as it says", False, [], turned)


def _small(found: dict[str, Inspection], image_size: int) -> Iterable[Finding]:
    sizes = np.concatenate([each.sizes[each.usable] for each in found.values()])
    count = int((sizes.min(axis=1, initial=image_size) < image_size).sum())
    if count:
        yield Finding(
            f"{count:,} of {len(sizes):,} images are smaller than {image_size} pixels along a side",
            f"at data.image_size={image_size} they are enlarged; a smaller size is faster",
            False,
            [],
            count,
        )


# ---- labels


def _labels(found: dict[str, Inspection]) -> Iterable[Finding]:
    sources = {split: each.source for split, each in found.items()}
    names = {split: list(source.class_names or ()) for split, source in sources.items()}
    if not any(names.values()):
        yield Finding("there are no labels", "training refuses it: make class folders, or a column of labels", True)
        return
    (first, expected), *others = names.items()
    if len(expected) < 2 and not sources[first].multi_label:
        yield Finding(
            f"there is one class alone: {_some(expected)}",
            "training refuses it: pass the folder that holds the folders of the classes",
            True,
        )
    for split, given in others:
        if given != expected:
            odd = sorted(set(expected) ^ set(given)) or ["their order"]
            yield Finding(
                f"{split} has other classes than {first}: {', '.join(odd[:EXAMPLES])}",
                "training refuses it before it starts: give all splits the same classes ("
                f"{sources[split].naming_classes})",
                True,
            )
        elif sources[split].multi_label != sources[first].multi_label:
            yield Finding(
                f"an image has several labels in {first if sources[first].multi_label else split} and one in the other",
                "training refuses it before it starts: give all splits the same kind of labels",
                True,
            )
    for split, source in sources.items():
        yield from _labels_of_split(split, source, training=split == first)


def _labels_of_split(split: str, source: ImageSource, *, training: bool) -> Iterable[Finding]:
    labels = source.labels
    unknown = int((~labels.known).sum() if source.multi_label else (labels < 0).sum())
    if unknown:
        verb = "image of {} has" if unknown == 1 else "images of {} have"
        yield Finding(f"{unknown:,} {verb.format(split)} no label", "left out", False, [], unknown)
    counts = source.class_counts
    for name in counts.keys() & {"-1", "-1.0"}:
        yield Finding(
            f"a class of {split} is called {name}",
            "it is learnt like the others: where it stands for no label, write none",
            training,
        )
    empty = [name for name, count in counts.items() if not count]
    if empty and unknown < len(source):
        yield Finding(
            f"{len(empty)} of {len(counts)} classes have no image in {split}: {_some(empty)}",
            "they are never learnt" if training else "what is measured says nothing about them",
            training,
        )
    filled = {name: count for name, count in counts.items() if count}
    if training and filled and max(filled.values()) >= UNEVEN * min(filled.values()):
        most, least = max(filled, key=lambda name: filled[name]), min(filled, key=lambda name: filled[name])
        yield Finding(
            f"{split} is uneven: {filled[most]:,} of {most}, {filled[least]:,} of {least}",
            "images are drawn as often as they are there; look at macro F1 beside accuracy",
            False,
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:EXAMPLES])
    return shown if len(names) <= EXAMPLES else f"{shown} and {len(names) - EXAMPLES} more"
