"""Which head fits a budget: the best memory mode and batch, and what had to be given up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from entropi.device.library import measure, refusal
from entropi.device.session import HeadConfig, Need


@dataclass(frozen=True)
class HeadPlan:
    """A head that fits, its bytes, and in words what a larger budget would have added."""

    head: HeadConfig
    need: Need
    gave_up: tuple[str, ...]


MOMENTUM = 0.9
BATCHES = (4, 2, 1)


def plan_head(image: bytes, budget: int, classes: int, learning_rate: float = 3.0) -> HeadPlan:
    """The best head for `classes` classes inside `budget` bytes of arena.

    8 bytes a parameter (with momentum) are tried before 4, and with either a batch of 4 samples before smaller ones; a
    larger batch takes fewer steps on the little data a device has. 12 bytes a parameter give the same weights as 8 and
    only pay where a batch of features is dearer than a gradient. Raises DeviceError (E_ARENA) with needed, given and
    missing when not even the smallest fits.
    """
    gave_up: tuple[str, ...] = ()
    for bytes_per_parameter in (8, 4):
        momentum = MOMENTUM if bytes_per_parameter > 4 else 0.0
        rate = learning_rate * (1 - momentum)
        for batch in BATCHES:
            head = HeadConfig(classes, batch, bytes_per_parameter, rate, momentum)
            need = measure(image, head)
            if need.total <= budget:
                if batch < BATCHES[0]:
                    gave_up += (f"batch {BATCHES[0]} (batch {batch} is the largest that fits)",)
                return HeadPlan(head, need, gave_up)
        gave_up = (f"momentum ({need.total - budget} bytes short with batch 1)",)
    raise refusal("E_ARENA", replace(need, given=budget, missing=need.total - budget))
