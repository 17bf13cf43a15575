"""Muon for the matrices of the layers and AdamW for everything else, as one optimiser with one state."""

from collections.abc import Callable
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """Each group goes to `torch.optim.Muon` or `torch.optim.AdamW`; both are torch's own.

    Muon (Jordan et al. 2024) steps by the momentum of a matrix with its singular values brought near 1. The step is
    scaled by 0.2 sqrt(larger side) (Liu et al. 2025, arXiv 2502.16982), so that learning rate and weight decay are
    those of AdamW. Its matrix products are in bfloat16.

    Groups and state are shared with the two, so there is one `state_dict`, and a schedule changes the rates of both.

    Args:
        groups: Groups with "matrices": True where they are Muon's (each parameter has two dimensions).
        lr, betas, eps: AdamW's, lr also Muon's.
        momentum: Muon's.

    Example:

    ```python
    >>> weight, bias = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.zeros(2))
    >>> groups = [{"params": [weight], "matrices": True}, {"params": [bias], "matrices": False}]
    >>> optimizer = MuonWithAdamW(groups, lr=0.1)
    >>> weight.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    >>> optimizer.step()
    >>> bias.detach()
    tensor([-0.1000, -0.1000])

    ```
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        ours = [dict(group) for group in groups]
        parts = [[group for group in ours if bool(group["matrices"]) == kind] for kind in (True, False)]
        self.inner: list[torch.optim.Optimizer] = []
        if parts[0]:
            self.inner.append(
                torch.optim.Muon(
                    parts[0], lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        if parts[1]:
            self.inner.append(torch.optim.AdamW(parts[1], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        super().__init__(ours, {"lr": lr, "weight_decay": weight_decay})  # takes these very dictionaries
        self._share()

    def _share(self) -> None:
        """Give the two their groups, and one state to both: after loading, all of them are new objects."""
        for optimizer in self.inner:
            kind = isinstance(optimizer, torch.optim.Muon)
            optimizer.param_groups = [group for group in self.param_groups if bool(group["matrices"]) == kind]
            optimizer.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.inner:
            optimizer.step()
        return loss
