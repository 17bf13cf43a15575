"""Some images of a source, as a source."""

from typing import Any

import numpy as np

from .image_source import Encoded, ImageSource, OnBadImage


class ChosenSource(ImageSource):
    """Images of another source by their indices there.

    Args:
        source: With an index.
        indices: (images,) Which of its images, in order.
        split: What they are called.
        on_bad_image: As `open_images` has it.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from qkvit.data import open_images
    >>> for name in ("cat", "dog"):
    ...     Path("pets", name).mkdir(parents=True)
    ...     Image.new("RGB", (40, 30)).save(f"pets/{name}/1.png")
    >>> ChosenSource(open_images("pets"), [1], split="mine")[0].name
    'dog/1.png'

    ```
    """

    def __init__(self, source: ImageSource, indices: Any, *, split: str, on_bad_image: OnBadImage = "stop") -> None:
        super().__init__(
            source.name,
            split=split,
            class_names=source.class_names,
            on_bad_image=on_bad_image,
            max_pixels=source.max_pixels,
            multi_label=source.multi_label,
        )
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def name_of(self, index: int) -> str:
        return self.source.name_of(int(self.indices[index]))

    @property
    def labels(self) -> Any:
        return self.source.labels[self.indices]

    def stored_sizes(self) -> Any:
        sizes = self.source.stored_sizes()
        return sizes if sizes is None or len(sizes) != len(self.source) else sizes[self.indices]

    def encoded(self, index: int) -> Encoded:
        return self.source.encoded(int(self.indices[index]))
