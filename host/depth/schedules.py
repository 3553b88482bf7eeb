"""How long and how fast: the schedules of `entropi depth`, by name.

A Schedule's `step`, `stop` and `counts` are a ladder's; no depth reducer reads them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from entropi.host.training.schedule import PRESETS, Schedule

LADDER_ONLY = ("step", "stop", "counts")

# The papers train and retrain for 160 epochs at 0.1 (VGG 0.01, Swin 1e-3), divided by 10 after 80 and 120; here along a
# cosine. The others are the ladder's of that name.
SCHEDULES = {
    "paper": Schedule(epochs_dense=160, epochs_rung=160, lr=0.1, lr_rung=0.1),
    **{name: PRESETS[name] for name in ("short", "smoke", "demo")},
}


def schedule(name: str) -> Schedule:
    """The schedule of that name. Raises ValueError listing the choices."""
    if name not in SCHEDULES:
        raise ValueError(f"preset {name!r} is not known; choose from {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def settings(schedule: Schedule) -> dict[str, Any]:
    """The fields that a depth reducer reads."""
    return {name: value for name, value in asdict(schedule).items() if name not in LADDER_ONLY}
