"""`qkvit evaluate`: the options; what it does is in `evaluation.py`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_choices import OnBadImage, OnBadImageOption, TrustRemoteCodeOption


def evaluate(
    model: Annotated[str, typer.Argument(help="A folder or Hub id of an image classifier.")],
    data: Annotated[
        str,
        typer.Option("--data", metavar="SOURCE", help="Class folders, Parquet files, or a data set's id on the Hub."),
    ],
    split: Annotated[
        str | None,
        typer.Option(help="Which part of the data, such as test; validation: also what the model's recipe held out."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU if there is one.")] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("evaluation"),
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images; 0: the main one.")] = 0,
    by_index: Annotated[
        bool, typer.Option("--by-index", help="Label 0 of the data is label 0 of the model, whatever their names.")
    ] = False,
    on_bad_image: OnBadImageOption = OnBadImage.stop,
    trust_remote_code: TrustRemoteCodeOption = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed, where a model draws random numbers.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of an earlier evaluation.")] = False,
) -> None:
    """Measure a classifier on labelled images: accuracy, top-5, macro F1, calibration, and what is taken for what."""
    from .evaluation import run_evaluation

    run_evaluation(
        model,
        data,
        output,
        split=split,
        batch_size=batch_size,
        device=device,
        num_workers=num_workers,
        by_index=by_index,
        on_bad_image=on_bad_image.value,
        trust_remote_code=trust_remote_code,
        seed=seed,
        force=force,
    )
