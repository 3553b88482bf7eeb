"""The demo's tasks and schedule, cut down so that the whole path takes a minute."""

from __future__ import annotations

from dataclasses import replace

from entropi.host import data, demo
from entropi.host.data import characters
from entropi.host.training.schedule import Schedule

SCHEDULE = Schedule(epochs_dense=1, epochs_rung=1, samples_rung=64, batch=32, step=0.01, stop=0.001)


def tasks() -> demo.Tasks:
    """12 digits a class to learn, 50 held out."""

    def cut(name: str) -> data.Dataset:
        whole = data.load(name)
        return replace(whole, train=whole.train.few_shot(12), test=whole.test.few_shot(5))

    return demo.Tasks(characters.load(train=256, test=36), cut("builtin:digits"), cut("builtin:digits8x8"))
