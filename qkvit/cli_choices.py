"""Options that several commands have."""

from enum import Enum
from typing import Annotated

import typer


class OnBadImage(str, Enum):
    """What `open_images` can do."""

    stop = "stop"
    skip = "skip"


OnBadImageOption = Annotated[
    OnBadImage, typer.Option(metavar="stop|skip", help="What to do about an image that cannot be read.")
]
