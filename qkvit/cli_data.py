"""`qkvit data check`: the options; what it does is in `data/check.py`."""

import json as json_format
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .errors import sentences
from .startup import load_models

data = typer.Typer(help="Look at a data set before training on it.", no_args_is_help=True)


@data.callback()
def _data() -> None:
    pass


@data.command()
def check(
    source: Annotated[
        str, typer.Argument(help="Class folders, Parquet, Arrow or WebDataset files, or a data set's id on the Hub.")
    ],
    splits: Annotated[str | None, typer.Option(metavar="LIST", help="Only these, such as train,test.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the labels.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Pixels that a model would be trained at.")] = 224,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0: the main one.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Read every image: unreadable ones, duplicates across splits, classes, sizes; and what training does with each.

    Exit code 0 where there is no problem, 1 where there is one, 2 where the data set cannot be opened.
    """
    load_models()
    from .data.check import check as run
    from .data.check_report import as_text

    wanted = None if splits is None else [split.strip() for split in splits.split(",") if split.strip()]
    with sentences():
        found = run(source, wanted, label=label, image_size=image_size, num_workers=num_workers, started=_bar)
    typer.echo(json_format.dumps(found.to_dict(), indent=2, ensure_ascii=False) if json else as_text(found))
    if found.problems:
        raise typer.Exit(1)


def _bar(split: str, images: int) -> Callable[[int], Any]:
    """A progress bar for a split, on standard error."""
    from tqdm import tqdm

    bar = tqdm(total=images, desc=split, unit=" images", delay=1, file=sys.stderr, leave=False)

    def seen(count: int) -> None:
        bar.update(count)
        if bar.n >= images:
            bar.close()

    return seen
