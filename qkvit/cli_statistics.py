"""`qkvit statistics`: the options; what it does is in `model_statistics.py`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_choices import OnBadImage, OnBadImageOption, TrustRemoteCodeOption

# As in analysis/statistics/groups.py, which loads torch.
GROUPS = "entropy, maximum, received, masses, place, distance, similarity, values"


def statistics(
    model: Annotated[str, typer.Argument(help="A folder or Hub id: QKViT, or any vision transformer of transformers.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="SOURCE", help="Images: a folder, Parquet files, or a data set's id on the Hub."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which part of the data, such as test.")] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Which layers, such as 0,5-8,-1; all by default.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only so many images, drawn by the seed.")] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Also the same over the model with random weights: twice the time.")
    ] = False,
    rollout: Annotated[
        bool,
        typer.Option("--rollout", help="Attention rollout too: beyond 400 tokens half a run more, or 1.5."),
    ] = False,
    class_quantiles: Annotated[
        bool, typer.Option("--class-quantiles", help="Quantiles for each class, of more than 100 classes too.")
    ] = False,
    weights: Annotated[bool, typer.Option("--weights", help="What the weights alone say; needs no data.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("statistics"),
    on_bad_image: OnBadImageOption = OnBadImage.stop,
    only: Annotated[
        str | None, typer.Option(metavar="GROUPS", help=f"Only these groups, with commas: {GROUPS}.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the labels.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read row by row, without a copy on the disk.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images; 0: the main one.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU if there is one.")] = "auto",
    trust_remote_code: TrustRemoteCodeOption = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of --images and of the random weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of an earlier run.")] = False,
) -> None:
    """Measure every attention head over a data set, or its weights alone: tables, pictures, where they come from.

    Stopped, it goes on where it was when the same command is given again. On several processes: torchrun
    --nproc-per-node 2 -m qkvit statistics ...
    """
    from .model_statistics import Request, run_statistics

    run_statistics(
        Request(
            model=model,
            data=data,
            split=split,
            layers=layers,
            images=images,
            control=control,
            rollout=rollout,
            class_quantiles=class_quantiles,
            weights=weights,
            output=output,
            on_bad_image=on_bad_image.value,
            only=only,
            label=label,
            streaming=streaming,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            trust_remote_code=trust_remote_code,
            seed=seed,
            force=force,
        )
    )
