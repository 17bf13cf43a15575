"""What a recipe asks of the optimiser, over what a checkpoint holds: a run may go on with another learning rate."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

# Others are no settings: some optimisers count in their groups.
_NAMES = ("initial_lr", "weight_decay", "betas", "eps")


def asked_settings(optimizer: Any) -> list[dict[str, Any]]:
    """Of each group of an optimiser that has been made, with its schedule, and has loaded nothing."""
    return [{name: group[name] for name in _NAMES if name in group} for group in optimizer.param_groups]


def put_back(asked: list[dict[str, Any]], optimizer: Any, schedule: Any) -> None:
    """Give an optimiser and its schedule, whose states have been loaded, what `asked_settings` found before.

    The next step has the rate of the schedule at this step. Where the recipe is the same, not a bit changes. What
    follows evaluations has no rate for a step (`run_folder.BY_EVALUATIONS`), and keeps the one that it has come to.

    Example:

    ```python
    >>> import torch
    >>> def made(rate):
    ...     optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    ...     return optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))
    >>> (before, schedule), (now, its_schedule) = made(1.0), made(3.0)
    >>> before.step(), schedule.step()
    (None, None)
    >>> asked = asked_settings(now)
    >>> now.load_state_dict(before.state_dict()), its_schedule.load_state_dict(schedule.state_dict())
    (None, None)
    >>> put_back(asked, now, its_schedule)
    >>> before.param_groups[0]["lr"], now.param_groups[0]["lr"]
    (0.5, 1.5)

    ```
    """
    follows_steps = isinstance(schedule, LambdaLR)
    for group, settings in zip(optimizer.param_groups, asked, strict=True):
        group.update({name: value for name, value in settings.items() if follows_steps or name != "initial_lr"})
    if follows_steps:
        schedule.base_lrs = [settings["initial_lr"] for settings in asked]
        shares = [share(schedule.last_epoch) for share in schedule.lr_lambdas]
        schedule._last_lr = [rate * share for rate, share in zip(schedule.base_lrs, shares, strict=True)]
        for group, rate in zip(optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate
