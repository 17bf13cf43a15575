"""Options that several commands have."""

from enum import Enum
from typing import Annotated

import typer


class OnBadImage(str, Enum):
    """What `open_images` can do."""

    stop = "stop"
    skip = "skip"


TrustRemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a model brings along; read it first.")
]
OnBadImageOption = Annotated[
    OnBadImage, typer.Option(metavar="stop|skip", help="What to do about an image that cannot be read.")
]
