"""LAMB: Adam whose step is scaled, layer by layer, to the size of the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), with bias correction.

    With Adam's direction r = m / (sqrt(v) + eps), the step is lr * |w| / |r + decay w| * (r + decay w) for each tensor;
    the factor is 1 where a norm is 0, and for tensors without weight decay (norms, biases), as in its usual uses.

    Example:

    ```python
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([1.0, 1.0])
    >>> Lamb([weight], lr=0.1, weight_decay=0.01).step()
    >>> round((weight.detach() - torch.tensor([3.0, 4.0])).norm().item(), 4)  # lr times the norm of 5
    0.5

    ```
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        first, second = group["betas"]
        state["step"] += 1
        count = state["step"].item()
        state["mean"].lerp_(weight.grad, 1 - first)
        state["square"].mul_(second).addcmul_(weight.grad, weight.grad, value=1 - second)
        root = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
        direction = (state["mean"] / (1 - first**count)).div_(root)
        factor = torch.ones((), device=weight.device)
        if group["weight_decay"]:
            direction.add_(weight, alpha=group["weight_decay"])
            sizes = weight.norm(), direction.norm()
            factor = torch.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / sizes[1], factor)
        weight.sub_(direction * (group["lr"] * factor))
