"""Which head fits a budget: the best memory mode and batch, what is left for replay, and what had to be given up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from entropi.device.library import describe, measure, refusal
from entropi.device.session import HeadConfig, Need


@dataclass(frozen=True)
class HeadPlan:
    """A head that fits, its bytes, and in words what a larger budget would have added."""

    head: HeadConfig
    need: Need
    gave_up: tuple[str, ...]


LEARNING_RATE = 14.0
HALVED_AFTER = 500  # samples learned, those from replay included, until the learning rate is half
LEARNING_RATE_TO_ZERO = 5.0  # where it is known how many samples come
MOMENTUM = 0.9
BATCHES = (4, 2, 1)
MODES = {8: "momentum", 4: "weights of 32 bits", 2: ""}  # bytes a parameter, and what the next mode gives up
MOST_REPLAY = 0xFFFF


def recipe(
    classes: int,
    bytes_per_parameter: int,
    batch: int,
    learning_rate: float | None = None,
    new_classes: int = 0,
    halved_after: float = HALVED_AFTER,
    samples: int = 0,
) -> HeadConfig:
    """How heads of every memory mode and batch learn unless told otherwise.

    Single samples disagree, which at a rate that stays keeps the head from settling. Where so many `samples` are to be
    learned, the rate falls along a line and is 0 at their end; where `samples` is 0 and nobody knows how many come, it
    falls as 1 / (1 + samples / halved_after). benchmarks/head_recipe.py chose the rates. With momentum, which adds up
    steps, a step is smaller.
    """
    momentum = MOMENTUM if bytes_per_parameter >= 8 else 0.0
    first = learning_rate or (LEARNING_RATE_TO_ZERO if samples else LEARNING_RATE)
    return HeadConfig(
        classes,
        batch,
        bytes_per_parameter,
        first * (1 - momentum),
        momentum,
        learning_rate_decay=0.0 if samples else batch / halved_after,
        new_classes=new_classes,
        steps=-(-samples // batch),
    )


def plan_head(
    image: bytes,
    budget: int,
    classes: int,
    learning_rate: float | None = None,
    new_classes: int = 0,
    keep_samples: bool = True,
    samples: int = 0,
) -> HeadPlan:
    """The best head for at most `classes` classes, the last `new_classes` of them unknown yet, in `budget` bytes.

    8 bytes a parameter (with momentum) are tried before 4 (without) and 2 (16 bits, rounded stochastically), and with
    each a batch of 4 samples before smaller ones: a larger batch takes fewer steps on the little data a device has, and
    fewer instructions a sample. 12 bytes a parameter are not tried: they give the weights of 8, and take fewer bytes
    only where the batch exceeds four samples a class. All learn by `recipe`; `samples` says how many will be learned, 0
    that nobody knows. What is left holds samples for replay, one a class at least: with each new sample one of them is
    learned again, a second sample that takes as many instructions. `keep_samples=False` leaves that out. Raises
    DeviceError (E_ARENA) with needed, given and missing when not even the smallest head fits.
    """
    gave_up: tuple[str, ...] = ()
    for bytes_per_parameter, lost in MODES.items():
        for batch in BATCHES:
            head = recipe(classes, bytes_per_parameter, batch, learning_rate, new_classes, samples=samples)
            need = measure(image, head)
            if need.total <= budget:
                if batch < BATCHES[0]:
                    gave_up += (f"batch {BATCHES[0]} (batch {batch} is the largest that fits)",)
                plan = HeadPlan(head, need, gave_up)
                return _with_replay(image, budget, plan) if keep_samples else plan
        gave_up += (f"{lost} ({need.total - budget} bytes short with batch 1)",)
    raise refusal("E_ARENA", replace(need, given=budget, missing=need.total - budget))


def _with_replay(image: bytes, budget: int, plan: HeadPlan) -> HeadPlan:
    """The plan with as many samples as the rest of the budget holds."""
    # Each sample brings one from replay: twice the steps.
    least = replace(plan.head, replay=plan.head.classes, steps=2 * plan.head.steps)
    missing = measure(image, least).total - budget
    if missing > 0:
        return replace(plan, gave_up=(*plan.gave_up, f"replay ({missing} bytes short of one sample a class)"))
    more = -missing // (describe(image).features + 2)
    head = replace(least, replay=min(least.replay + more, MOST_REPLAY))
    return replace(plan, head=head, need=measure(image, head))
