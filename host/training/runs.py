"""What folders that grow one trained network at a time share: they are read with care, gone on with only under the same
settings, and a network that is trained has a checkpoint after every epoch but the last."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from entropi.device.files import write_atomically
from entropi.host.training import tensors
from entropi.host.training.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"
LADDER, DEPTH = "ladder.json", "depth.json"  # what tells the folders apart
MOST_SEED = (1 << 63) - 1


class RunError(ValueError):
    """The folder is none of that kind, is damaged, or was begun with other settings."""


Run = TypeVar("Run", bound=Iterable[Any])


def load(folder: Path, index: str, version: int, kind: str, command: str, make: Callable[[dict[str, Any]], Run]) -> Run:
    """What `make` returns for the content of a folder's JSON file `index`: networks, each with its `path` and its
    `metadata`, its file being there.

    `kind` is what such folders are called, `command` writes them. Raises RunError naming what is missing or
    malformed."""
    file = folder / index
    if not file.is_file():
        raise RunError(f"{folder} is no {kind}: {index} is missing; build one with {command} --out {folder}")
    try:
        content = json.loads(read(file))
        if content["format"] != version:
            raise RunError(f"{file} has format {content['format']}; this version reads {version}")
        run = make(content)
    except RunError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error!r}); restore it or build again in an empty folder") from error
    for network in run:
        check_stored(network.path, network.metadata)
    return run


def check_begin(folder: Path, index: str, seed: int) -> None:
    """Raises RunError where `folder` is a file or holds another run than one of `index`, ValueError for a seed that no
    generator takes."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give --out a folder")
    for other in {LADDER, DEPTH} - {index}:
        if (folder / other).exists():
            raise RunError(f"{folder} holds another run, {other}; give --out another folder")
    if seed > MOST_SEED:
        raise ValueError(f"seed is {seed}; it must be at most {MOST_SEED}")


def read(path: Path) -> bytes:
    """The bytes of a file. Raises RunError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); restore it") from error


def store(file: Path, state: dict[str, torch.Tensor], metadata: dict[str, Any]) -> dict[str, Any]:
    """Write a network; returns what the folder's index keeps of the file: its name, bytes and SHA-256."""
    content = tensors.pack(state, metadata)
    write_atomically(file, content)
    return {"file": file.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_stored(file: Path, entry: dict[str, Any]) -> None:
    """Raises RunError where a file is missing or has another size than `store` returned."""
    if not file.is_file():
        raise RunError(f"{file} is missing; restore it or build again in an empty folder")
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise RunError(
            f"{file} is damaged: it has {size} bytes and was written with {entry['bytes']}; "
            "restore it or build again in an empty folder"
        )


def stored(file: Path, entry: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network that `store` wrote, dense. Raises RunError where the file is damaged."""
    content = read(file)
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise RunError(
            f"{file} is damaged: {len(content)} bytes whose SHA-256 differs from the one that was kept "
            f"({entry['bytes']} bytes were written); restore it or build again in an empty folder"
        )
    return tensors.unpack(content, file)[0]


def compare(path: Path, old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> None:
    """Raises RunError where a value of `new` is not that of `old`."""
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            compare(path, before, value, f"{name}.")
        elif before != value:
            raise RunError(
                f"{path} was begun with {prefix}{name} = {before!r} and is now asked for {value!r}; "
                "ask for the old value or choose another folder"
            )


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Within the context torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    trainer: Trainer, folder: Path, part: dict[str, int], seed: tuple[int, ...], on_step: Callable[[int], None]
) -> None:
    """All epochs of the trainer's plan, from the folder's checkpoint on where that is of the same `part`.

    `part` is kept in the checkpoint; `on_step` gets the steps done, of all epochs."""
    file = folder / CHECKPOINT
    for epoch in range(_resume(trainer, file, part), trainer.plan.epochs):
        begin = epoch * trainer.steps_an_epoch
        trainer.epoch(epoch, seed, lambda step, b=begin: on_step(b + step))
        if epoch + 1 < trainer.plan.epochs and trainer.task.engine.rank == 0:
            write_atomically(file, tensors.pack(trainer.state(), {**part, "epochs": epoch + 1}))


def _resume(trainer: Trainer, file: Path, part: dict[str, int]) -> int:
    """Bring back the checkpoint; returns how many epochs are done."""
    if not file.exists():
        return 0
    state, metadata = tensors.unpack(read(file), file)
    epochs = metadata.pop("epochs")
    if metadata != part:  # of the part before: killed between finishing it and clearing up
        return 0
    trainer.restore(state)
    return epochs
