"""Models and image processors for the commands, by name, with one sentence for each way in which they cannot be had."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UserError, sentences


def load_pretrained(
    auto_class: Any, name: str, device: str, *, trust_remote_code: bool = False
) -> tuple[Any, set[str]]:
    """A model in float32 and in eval mode, and the names of weights that its checkpoint lacks.

    Args:
        auto_class: Such as `AutoModel`.
        name: A folder or Hub id.
        trust_remote_code: Run the code that a model brings along.

    Raises:
        UserError: there is none of that name, its files are damaged, or it needs code that nobody said to trust.
    """
    import torch

    with _told(name):
        model, report = auto_class.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    return model.eval().to(device), set(report["missing_keys"])


def load_image_processor(name: str, *, trust_remote_code: bool = False) -> Any:
    """What makes pixel values of images.

    Raises:
        UserError: the model has none.
    """
    # Not from transformers: 5.17 has it there only where torchvision is installed.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    with _told(name, what=f"{name} has no image processor: "):
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)


@contextmanager
def _told(name: str, what: str | None = None) -> Iterator[None]:
    from .configuration.hub_errors import hub_sentences

    try:
        with sentences(), hub_sentences(name), sentences(what or f"{name} cannot be loaded: ", also=(RuntimeError,)):
            yield
    except UserError as error:
        if "contains custom code" not in str(error):
            raise
        raise UserError(
            f"{name} brings code of its own, which would run here: read its files, and pass --trust-remote-code if you"
            " trust them"
        ) from error
