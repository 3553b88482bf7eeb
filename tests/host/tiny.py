"""A ladder that takes seconds: a small network, few images. As a script, a build that is killed again and again:

    python tiny.py FOLDER EVENT...

builds once for every EVENT, each time in a new process that goes on in the same folder, and prints how that process
ended and how many rungs were finished by then. An EVENT is where the process kills itself with SIGKILL: step:N, at
optimiser step N; rename:NAME, about to move a file over NAME; remove:NAME, about to remove NAME; or never:"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from entropi.host.data import Dataset, characters
from entropi.host.networks import archs
from entropi.host.training.ladder import Ladder
from entropi.host.training.schedule import Schedule

SCHEDULE = Schedule(
    epochs_dense=2, epochs_rung=2, samples_rung=64, batch=32, lr=0.02, lr_rung=0.01, step=0.2, stop=0.05
)


def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        "tiny characters", characters.CLASSES, characters.draw(96, generator), characters.draw(72, generator)
    )


def build(path: Path, source: Dataset, progress=None) -> Ladder:
    return Ladder.build(path, arch="resnet8", source=source, schedule=SCHEDULE, seed=3, threads=1, progress=progress)


def build_until(build: Callable, folder: Path, event: str) -> None:
    kind, _, where = event.partition(":")

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(name: str, args: tuple) -> None:
        if name == f"os.{kind}" and Path(args[kind == "rename"]).name == where:
            die()

    def step(done: int, total: int, text: str) -> None:
        if kind == "step" and done == int(where):
            die()

    source = dataset()
    if kind in ("rename", "remove"):
        sys.addaudithook(watch)
    build(folder, source, step)


def main(folder: Path, events: list[str], build: Callable = build, reopen: Callable = Ladder.open) -> None:
    with torch.device("meta"):
        archs.build("resnet8", 2)  # makes torch import, once for all, what takes it seconds
    for event in events:
        process = os.fork()  # nothing has run on torch's threads yet, so the child may use them
        if process == 0:
            build_until(build, folder, event)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(event, status, len(reopen(folder)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
