"""The learning rate falls when the development error stops falling."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class Plateau:
    """Scales the learning rate down after epochs that improved the error too little.

    Call ``step(error)`` once after each epoch. An epoch is bad if ``(previous - error) / error <
    threshold``, with ``previous`` the error of the epoch before; a good one sets the count of bad
    epochs to 0. When the count exceeds ``patience``, each learning rate is multiplied by
    ``factor``, but not to below ``floor``, and the count starts at 0 again.

    ``torch.optim.lr_scheduler.ReduceLROnPlateau`` with the same numbers differs: it compares with
    the *best* error so far, not with the previous one, and relative to that one, not to the new
    one; its first call counts as an improvement, and it has a cooldown.

    Args:
        optimizer: any torch optimizer; all its parameter groups are scaled.
        threshold: the smallest relative improvement of a good epoch.
        patience: bad epochs in a row that change nothing.
        factor: of the learning rate, in (0, 1).
        floor: smallest learning rate that the rule sets. One that is below it already stays.

    Raises:
        TypeError: ``optimizer`` is not one.
        ValueError: a number is outside its domain.

    Source: code released with Ponghiran and Roy (AAAI 2022, arXiv:2109.01905), the frame error of
    the development set being ``error``, with Adam at 1e-3. A reproduction report has another
    rule: half after 3 epochs with an improvement below 0.1, of unclear unit.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        threshold: float = 0.005,
        patience: int = 1,
        factor: float = 0.5,
        floor: float = 1.25e-4,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"expected a torch optimizer, got {type(optimizer).__name__}")
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite, got {threshold}")
        if patience < 0:
            raise ValueError(f"patience must be 0 or more epochs, got {patience}")
        if not 0 < factor < 1:
            raise ValueError(f"factor must be in (0, 1), got {factor}")
        if not 0 <= floor < math.inf:
            raise ValueError(f"floor must be finite and 0 or more, got {floor}")
        self.optimizer = optimizer
        self.threshold = threshold
        self.patience = patience
        self.factor = factor
        self.floor = floor
        self.previous: float | None = None
        self.num_bad_epochs = 0

    def step(self, error: float | Tensor) -> None:
        """Takes the error of the epoch that has ended; the first call only remembers it.

        Args:
            error: a number or a tensor of one element, lower is better, 0 or more.

        Raises:
            ValueError: the error is negative or not finite.
        """
        error = float(error)
        if not 0 <= error < math.inf:
            raise ValueError(f"error must be finite and 0 or more (the rule is relative to it), got {error}")
        previous, self.previous = self.previous, error
        if previous is None:
            return
        # No error left is as good as it gets.
        improvement = (previous - error) / error if error > 0 else math.inf
        self.num_bad_epochs = self.num_bad_epochs + 1 if improvement < self.threshold else 0
        if self.num_bad_epochs > self.patience:
            self.num_bad_epochs = 0
            for group in self.optimizer.param_groups:
                self._reduce(group)

    def _reduce(self, group: dict[str, Any]) -> None:
        old = float(group["lr"])
        new = min(old, max(old * self.factor, self.floor))
        if isinstance(group["lr"], Tensor):  # a captured step reads the tensor
            group["lr"].fill_(new)
        else:
            group["lr"] = new

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer, whose own state holds the learning rates."""
        return {name: value for name, value in self.__dict__.items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave, thresholds included. Load the optimizer's too.

        Raises:
            ValueError: it has other entries, so it is not from this class.
        """
        if state_dict.keys() != self.state_dict().keys():
            raise ValueError(f"expected the entries {sorted(self.state_dict())}, got {sorted(state_dict)}")
        self.__dict__.update(state_dict)
