"""Parameters that a model has and does not use: DDP waits for their gradients, and says so in a page of text."""

import re

from torch import nn

from ..errors import TrainingRefusedError

_NAMED = 4  # parameters that are called by their names in a sentence


def unused_parameters(error: Exception, model: nn.Module) -> TrainingRefusedError | None:
    """One sentence for DDP's error about parameters without a gradient, with the ways out; None for any other error.

    Args:
        model: Without what is around it.
    """
    text = str(error)
    if "finished reduction in the prior iteration" not in text:
        return None
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]  # as DDP counts them
    listed = re.search(r"Parameter indices which did not receive grad for rank \d+:((?: \d+)+)", text)
    unused = [names[int(index)] for index in listed[1].split()] if listed else []
    more = f", and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
    said = f" ({', '.join(unused[:_NAMED])}{more})" if unused else ""
    patterns = ", ".join(unused) if unused and not more else "PATTERN, PATTERN"
    return TrainingRefusedError(
        f"the loss does not depend on some of the model's parameters{said}, and several processes wait for their"
        f' gradients: train anew in another output_dir, without them (--set "trainable=all but {patterns}") or with'
        " --set ddp_find_unused_parameters=true, which takes longer"
    )
