"""How long, on how much and how fast a ladder is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entropi.host.training import Optimisation


@dataclass(frozen=True)
class Schedule:
    """The dense network is trained for `epochs_dense`, every pruned one retrained for `epochs_rung`, each time with
    SGD whose learning rate falls to 0 along a cosine. Alpha, the fraction of weights kept, is multiplied by `step`
    from rung to rung until it is at most `stop`.

    The defaults are ENTROPI's source training (90 epochs, batch 128, lr 0.1, x0.75 a rung); the paper does not say
    how long and how fast it retrains, so `epochs_rung` and `lr_rung` are ours. Raises ValueError for values out
    of range."""

    epochs_dense: int = 90
    epochs_rung: int = 5
    samples_rung: int | None = None  # random training samples that an epoch of retraining sees; None: all
    batch: int = 128
    lr: float = 0.1
    lr_rung: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    step: float = 0.75
    stop: float = 0.005

    def __post_init__(self) -> None:
        for name in ("epochs_dense", "epochs_rung", "samples_rung", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("lr", "lr_rung"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("step", "stop"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1, both excluded")

    def alphas(self) -> tuple[float, ...]:
        """Alpha of every rung: 1, step, step^2, ... down to the first that is at most `stop`."""
        alphas = [1.0]
        while alphas[-1] > self.stop:
            alphas.append(self.step ** len(alphas))
        return tuple(alphas)

    def plan(self, rung: int) -> Optimisation:
        """The training run of one rung; rung 0 is the dense network."""
        rates = {"batch": self.batch, "momentum": self.momentum, "weight_decay": self.weight_decay}
        if rung == 0:
            return Optimisation(self.epochs_dense, self.lr, **rates)
        return Optimisation(self.epochs_rung, self.lr_rung, samples=self.samples_rung, **rates)


PRESETS = {
    "demo": Schedule(epochs_dense=2, epochs_rung=1, samples_rung=2560, lr_rung=0.1),
    "paper": Schedule(),
}
