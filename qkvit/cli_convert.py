"""`qkvit convert`: any plain ViT checkpoint into a QKViT folder, or back into another family's."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import UserError, sentences
from .startup import load_models


def convert(
    source: Annotated[str, typer.Argument(help="Folder with config.json and weights, or an id on the Hub.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FAMILY", help="Write this family's layout instead, such as dinov2, vit or timm."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Data type of the weights, such as bfloat16; as they are by default.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="With --to: how tensors are named, transformers-4 or transformers-5.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is in the folder.")] = False,
) -> None:
    """Turn a ViT checkpoint of transformers or timm into a QKViT model with the same numbers, or back."""
    if layout is not None and to is None:
        raise UserError("--layout names the tensors of another family, and needs --to with its name")
    load_models()
    from .data.hub_names import look_for
    from .modeling.conversion import check_choices, convert_folder
    from .modeling.whole_folder import check_free, whole_folder

    with sentences():
        check_choices(to, layout, dtype)
        check_free(destination, force)
        look_for(source, "model")
        typer.echo(f"{source} becomes {'a QKViT model' if to is None else f'a {to!r} checkpoint'} in {destination}")
        if to is not None:
            _export(source, destination, dtype, to, layout, force)
            typer.echo(f"{destination} holds the model as a {to!r} checkpoint")
            return
        with whole_folder(destination, force) as part:
            name = convert_folder(source, part, dtype=dtype)
    typer.echo(
        f"{destination} holds a {name}; load it with\n"
        f"    from qkvit import {name}\n"
        f'    model = {name}.from_pretrained("{destination}")\n'
        "or, where qkvit is not installed, with an Auto class of transformers and trust_remote_code=True"
    )


def _export(source: str, destination: Path, dtype: str | None, to: str, layout: str | None, force: bool) -> None:
    """Write another family's checkpoint from a QKViT folder, or from one of a third family."""
    from .modeling.conversion import convert, export, load_own, model_type_of

    own = model_type_of(source) == "qkvit"
    model = load_own(source, dtype) if own else convert(source, dtype=dtype)
    export(model, destination, family=to, layout=layout, force=force)
