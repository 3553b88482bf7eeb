"""A ladder built by the processes that torchrun started; by pytest's process alone it is imported as a module.

    python -m torch.distributed.run --standalone --nproc-per-node 2 parts.py FOLDER STEP

The first process kills itself with SIGKILL at optimiser step STEP; 0: never. Every process notes the name of each file
that it moved into FOLDER, and at the end how many rungs there are, in FOLDER-rankN.log."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from entropi.host.data import Dataset, characters
from entropi.host.training.ladder import Ladder
from entropi.host.training.schedule import Schedule

SCHEDULE = Schedule(
    epochs_dense=3, epochs_rung=2, samples_rung=128, batch=32, lr=0.05, lr_rung=0.02, step=0.2, stop=0.05,
    precision="float32",
)  # fmt: skip


class Plain(nn.Module):
    """Without batch norm, so that parts of a batch have the same gradients as the whole of it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(8)
        )  # fmt: skip
        self.fc = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(x).flatten(1))


def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset("parts", characters.CLASSES, characters.draw(160, generator), characters.draw(144, generator))


def build(folder: Path, progress=None) -> Ladder:
    return Ladder.build(
        folder, arch="parts:Plain", source=dataset(), schedule=SCHEDULE, seed=3, threads=1, progress=progress
    )


def main(folder: Path, last: int) -> None:
    rank = int(os.environ["RANK"])
    log = Path(f"{folder}-rank{rank}.log")
    log.write_text("")

    def note(text: str) -> None:
        with log.open("a") as file:
            print(text, file=file)

    def watch(name: str, args: tuple) -> None:
        if name == "os.rename" and Path(args[1]).parent == folder:
            note(Path(args[1]).name)

    def step(done: int, total: int, text: str) -> None:
        if rank == 0 and done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    note(str(len(build(folder, step))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
