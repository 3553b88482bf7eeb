"""How long, on how much and how fast a ladder is trained, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from entropi.host.training.engine import PRECISIONS
from entropi.host.training.trainer import Optimisation

COUNTS = ("weights", "parameters")
AUTO = "auto"
FLOOR = 1e-4  # where even stop="auto" ends
MOST_RUNGS = 1000
PATIENCE = 2  # stop="auto": so many rungs in a row, each
ACCURACY_FALL = 0.02  # by more than this below the best source accuracy of a pruned rung
ENTROPY_FALL = 0.1  # and by more than this share below the highest entropy of one


@dataclass(frozen=True)
class Schedule:
    """The dense network is trained for `epochs_dense`, every pruned one retrained for `epochs_rung`, each time with
    SGD whose learning rate rises over the share `warm_up` of its steps and then falls to 0 along a cosine. The share of
    encoder weights kept is multiplied by `step` from rung to rung until it is at most `stop`, or, with stop="auto",
    until both the source accuracy and the entropy of the encoder's output have fallen for good.

    counts: what alpha is a share of. "weights": the encoder's convolution and linear weights, all that pruning may
    remove; "parameters": all of the network's, of which batch norm, biases and the head always stay.
    samples_rung: random training samples that an epoch of retraining sees, None for all. augment: see Optimisation.
    precision: auto, float32 or bfloat16, of the forward and backward passes.

    The defaults are ENTROPI's source training (90 epochs, batch 128, lr 0.1, x0.75 a rung); the paper does not say
    how long and how fast it retrains, nor whether it augments, so `epochs_rung`, `lr_rung` and `augment` are ours.
    Raises ValueError for values out of range."""

    epochs_dense: int = 90
    epochs_rung: int = 5
    samples_rung: int | None = None
    batch: int = 128
    lr: float = 0.1
    lr_rung: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: float = 0.0
    augment: bool = True
    precision: str = "auto"
    step: float = 0.75
    stop: float | Literal["auto"] = AUTO
    counts: str = "weights"

    def __post_init__(self) -> None:
        for name in ("epochs_dense", "epochs_rung", "samples_rung", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("lr", "lr_rung"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("momentum", "weight_decay", "warm_up"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        for name, other in (("step", ""), ("stop", f", or {AUTO}")):
            value = getattr(self, name)
            if not (other and value == AUTO) and (isinstance(value, str) or not 0 < value < 1):
                raise ValueError(f"{name} is {value}; it must be between 0 and 1, both excluded{other}")
        lowest = FLOOR if self.stop == AUTO else self.stop
        if math.log(lowest) / math.log(self.step) > MOST_RUNGS:
            raise ValueError(f"step is {self.step}; down to {lowest} that makes more than {MOST_RUNGS} rungs; lower it")
        for name, choices in (("precision", PRECISIONS), ("counts", COUNTS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")

    def shares(self) -> tuple[float, ...]:
        """The share of encoder weights that every rung keeps: 1, step, step^2, ... down to the first that is at most
        `stop`. With stop="auto" a ladder usually ends before the last of these."""
        lowest = FLOOR if self.stop == AUTO else self.stop
        shares = [1.0]
        while shares[-1] > lowest:
            shares.append(self.step ** len(shares))
        return tuple(shares)

    def finished(self, accuracies: Sequence[float], entropies: Sequence[float]) -> bool:
        """Whether rungs with these source accuracies (0..1) and entropies (nats), dense first, are a whole ladder."""
        if len(accuracies) >= len(self.shares()):
            return True
        accuracies, entropies = accuracies[1:], entropies[1:]  # retraining alone sets the dense network apart
        if self.stop != AUTO or len(accuracies) <= PATIENCE:
            return False
        fallen_accuracy = max(accuracies) - ACCURACY_FALL
        fallen_entropy = max(entropies) * (1 - ENTROPY_FALL)
        return max(accuracies[-PATIENCE:]) < fallen_accuracy and max(entropies[-PATIENCE:]) < fallen_entropy

    def changed(self, **values: Any) -> Schedule:
        """The schedule with those of `values` that are not None. Raises ValueError for values out of range."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def plan(self, rung: int) -> Optimisation:
        """The training run of one rung; rung 0 is the dense network."""
        shared = {name: getattr(self, name) for name in ("batch", "momentum", "weight_decay", "warm_up", "augment")}
        if rung == 0:
            return Optimisation(self.epochs_dense, self.lr, **shared)
        return Optimisation(self.epochs_rung, self.lr_rung, samples=self.samples_rung, **shared)


def preset(name: str) -> Schedule:
    """The schedule of that name. Raises ValueError listing the choices."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not known; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


PRESETS = {
    "paper": Schedule(),
    # Few rungs, each retrained on everything, twice: rungs retrained in a hurry lose what they had learned. Short runs
    # end higher with a warm-up, a lower learning rate and more weight decay than the paper's.
    "short": Schedule(epochs_dense=15, epochs_rung=2, lr=0.03, lr_rung=0.03, warm_up=0.2, weight_decay=5e-4, step=0.42),
    "smoke": Schedule(epochs_dense=1, epochs_rung=1, samples_rung=2560, step=0.3, stop=0.01),
    "demo": Schedule(epochs_dense=2, epochs_rung=1, samples_rung=2560, lr_rung=0.1, augment=False, stop=0.005),
}
