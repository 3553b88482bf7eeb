"""The ladder: one network, pruned further on every rung and retrained, kept in a folder.

    ladder.json               settings and, for every finished rung, alpha, non-zeros, accuracy, seconds, SHA-256
    rung-00.safetensors ...   the networks; a tensor NAME that is mostly zeros is stored as NAME.index (int32, flat)
                              and NAME.value (float32), its shape is in the metadata
    checkpoint.safetensors    while a rung is trained: weights and momentum after its last whole epoch

Every rung starts from the file of the rung before, and every file is replaced in one step. So a build that was killed
goes on where it stopped and ends with the same bytes (same machine, torch version and number of threads).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import nn

from entropi.device.files import write_atomically, write_json
from entropi.host import archs, data, pruning, training
from entropi.host.progress import Progress
from entropi.host.schedule import PRESETS, Schedule

FORMAT = 1
LADDER = "ladder.json"
CHECKPOINT = "checkpoint.safetensors"
# safetensors writes several metadata keys in no fixed order, so everything is JSON under this one.
METADATA_KEY = "entropi"


class LadderError(ValueError):
    """The folder is no ladder, is damaged, or was built with other settings."""


@dataclass(frozen=True)
class Rung:
    """One network of a ladder.

    alpha: fraction of encoder weights kept; nonzeros: how many that is; source_accuracy: on the source test split,
    0..1; mean, std: per channel, the network takes (pixel / 255 - mean) / std; input_shape: (C, H, W);
    metadata: the rung's entry in ladder.json."""

    index: int
    alpha: float
    nonzeros: int
    source_accuracy: float
    path: Path
    arch: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.arch}-rung{self.index:02d}"

    def state(self) -> dict[str, torch.Tensor]:
        """The state dict, dense. Raises LadderError where the file is damaged."""
        content = _read(self.path)
        if hashlib.sha256(content).hexdigest() != self.metadata["sha256"]:
            raise LadderError(
                f"{self.path} is damaged: {len(content)} bytes whose SHA-256 differs from the one in {LADDER} "
                f"({self.metadata['bytes']} bytes were written); restore it or build again in an empty folder"
            )
        return _unpack(*_parse(content, self.path))

    def model(self) -> nn.Module:
        """The whole network in evaluation mode, head of the source task included."""
        with torch.device("meta"):
            model = archs.build(self.arch, len(self.classes))
        model.load_state_dict(self.state(), assign=True)
        return model.to(memory_format=torch.channels_last).eval()

    def encoder(self) -> nn.Module:
        """Everything before the head, in evaluation mode: normalised float32 (N, C, H, W) to (N, features)."""
        return archs.split(self.model())[0]


class Ladder(Sequence[Rung]):
    """The finished rungs of a ladder folder, dense first. Make one with Ladder.open or Ladder.build."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self._content = content
        settings = content["settings"]
        self.arch: str = settings["arch"]
        self.source: str = settings["source"]
        self.seed: int = settings["seed"]
        self.threads: int = settings["threads"]
        self.schedule = Schedule(**settings["schedule"])
        self.classes: tuple[str, ...] = tuple(content["classes"])
        self.input_shape: tuple[int, int, int] = tuple(content["input_shape"])
        self.mean: tuple[float, ...] = tuple(content["mean"])
        self.std: tuple[float, ...] = tuple(content["std"])
        self._settings = {**settings, "schedule": asdict(self.schedule)}
        self._rungs = [self._rung(index, entry) for index, entry in enumerate(content["rungs"])]

    def _rung(self, index: int, entry: dict[str, Any]) -> Rung:
        return Rung(
            index=index,
            alpha=entry["alpha"],
            nonzeros=entry["nonzeros"],
            source_accuracy=entry["source_accuracy"],
            path=self.path / entry["file"],
            arch=self.arch,
            classes=self.classes,
            input_shape=self.input_shape,
            mean=self.mean,
            std=self.std,
            metadata=entry,
        )

    @property
    def complete(self) -> bool:
        """Whether every rung of the schedule is there."""
        return len(self) == len(self.schedule.alphas())

    def __len__(self) -> int:
        return len(self._rungs)

    @overload
    def __getitem__(self, index: int) -> Rung: ...
    @overload
    def __getitem__(self, index: slice) -> list[Rung]: ...
    def __getitem__(self, index):
        return self._rungs[index]

    @classmethod
    def open(cls, path: str | Path) -> Ladder:
        """Open a ladder, finished or not. Raises LadderError naming what is missing or malformed."""
        path = Path(path)
        if not (path / LADDER).is_file():
            raise LadderError(f"{path} is no ladder: {LADDER} is missing; build one with entropi ladder --out {path}")
        try:
            content = json.loads(_read(path / LADDER))
            if content["format"] != FORMAT:
                raise LadderError(f"{path / LADDER} has format {content['format']}; this version reads {FORMAT}")
            ladder = cls(path, content)
        except LadderError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise LadderError(
                f"{path / LADDER} is damaged ({error!r}); restore it or build again in an empty folder"
            ) from error
        for rung in ladder:
            if not rung.path.is_file():
                raise LadderError(f"{rung.path} is missing; restore it or build again in an empty folder")
            size = rung.path.stat().st_size
            if size != rung.metadata["bytes"]:
                raise LadderError(
                    f"{rung.path} is damaged: it has {size} bytes and was written with {rung.metadata['bytes']}; "
                    "restore it or build again in an empty folder"
                )
        return ladder

    @classmethod
    def build(
        cls,
        path: str | Path,
        *,
        arch: str = "resnet18",
        source: str | data.Dataset = "builtin:characters",
        schedule: Schedule = PRESETS["demo"],
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Ladder:
        """Train and prune every rung that the folder does not hold yet, and open it.

        `source` is what data.load takes, or a Dataset. `threads` is how many torch may use; None: as many as
        the folder was begun with, or torch's own number. `progress` is called after every optimiser step with
        (steps done, steps in all, text). Raises LadderError when the folder was begun with other settings,
        training.TrainingError when the loss diverges, ValueError for unknown names."""
        path = Path(path)
        begun = cls.open(path) if (path / LADDER).exists() else None
        if threads is None:
            threads = begun.threads if begun else torch.get_num_threads()
        for name, value, least in (("seed", seed, 0), ("threads", threads, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        settings = {
            "arch": arch,
            "source": source if isinstance(source, str) else source.name,
            "seed": seed,
            "threads": threads,
            "schedule": asdict(schedule),
        }
        if begun:
            _compare(path, begun._settings, settings)
            if begun.complete and isinstance(source, str):
                return begun
        archs.check(arch)
        dataset = data.load(source) if isinstance(source, str) else source
        settings["source_sha256"] = dataset.fingerprint()
        if begun:
            _compare(path, begun._settings, settings)
            ladder = begun
        else:
            ladder = cls._begin(path, settings, dataset)
        with _threads(threads):
            ladder._climb(dataset, progress or (lambda done, total, text: None))
        return ladder

    @classmethod
    def _begin(cls, path: Path, settings: dict[str, Any], dataset: data.Dataset) -> Ladder:
        channels = dataset.input_shape[0]
        if channels != archs.CHANNELS:
            raise ValueError(
                f"{dataset.name} has {channels} channels and {settings['arch']} takes {archs.CHANNELS}; "
                f"choose a source with {archs.CHANNELS}"
            )
        path.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "settings": settings,
            "classes": list(dataset.classes),
            "input_shape": list(dataset.input_shape),
            "mean": [training.MEAN] * channels,
            "std": [training.STD] * channels,
            "rungs": [],
        }
        write_json(path / LADDER, content)
        return cls(path, content)

    def _climb(self, dataset: data.Dataset, progress: Progress) -> None:
        """Make every rung that is missing."""
        alphas = self.schedule.alphas()
        plans = [self.schedule.plan(index) for index in range(len(alphas))]
        steps = [plan.epochs * plan.steps_an_epoch(len(dataset.train)) for plan in plans]
        for index in range(len(self), len(alphas)):
            started = time.perf_counter()
            text = f"rung {index} of 0 to {len(alphas) - 1}, {alphas[index]:.2%} of the weights"
            done = sum(steps[:index])
            model = self._train(
                index, alphas[index], dataset, lambda step, d=done, t=text: progress(d + step, sum(steps), t)
            )
            entry = {
                "alpha": alphas[index],
                "nonzeros": pruning.nonzeros(pruning.prunable(model)),
                "source_accuracy": training.accuracy(model, dataset.test),
            }
            file = self.path / f"rung-{index:02d}.safetensors"
            content = _pack(model.state_dict(), {"arch": self.arch, "index": index, **entry})
            write_atomically(file, content)
            entry |= {
                "file": file.name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "seconds": round(time.perf_counter() - started, 2),
                "torch": torch.__version__,
            }
            self._content["rungs"].append(entry)
            write_json(self.path / LADDER, self._content)
            self._rungs.append(self._rung(index, entry))
            (self.path / CHECKPOINT).unlink(missing_ok=True)

    def _train(self, index: int, alpha: float, dataset: data.Dataset, on_step) -> nn.Module:
        """The trained network of one rung, from the rung before and, where there is one, the checkpoint."""
        plan = self.schedule.plan(index)
        steps = plan.steps_an_epoch(len(dataset.train))
        if index == 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = archs.build(self.arch, len(self.classes)).to(memory_format=torch.channels_last)
        else:
            model = self[index - 1].model()
            weights = pruning.prunable(model)
            masks = pruning.magnitude_masks(weights, alpha)
            pruning.apply(weights, masks)
            training.hold_zero(weights, masks)
        optimiser = training.sgd(model, plan)
        for epoch in range(self._resume(index, model, optimiser), plan.epochs):
            begin = epoch * steps
            training.fit_epoch(
                model, optimiser, dataset.train, plan, epoch, (self.seed, index), lambda s, b=begin: on_step(b + s)
            )
            if epoch + 1 < plan.epochs:
                self._checkpoint(index, epoch + 1, model, optimiser)
        return model

    def _checkpoint(self, index: int, epochs: int, model: nn.Module, optimiser: torch.optim.SGD) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            tensors[f"momentum.{name}"] = optimiser.state[parameter]["momentum_buffer"]
        metadata = {"rung": index, "epochs": epochs}
        write_atomically(self.path / CHECKPOINT, _pack(tensors, metadata))

    def _resume(self, index: int, model: nn.Module, optimiser: torch.optim.SGD) -> int:
        """Bring back the checkpoint of this rung; returns how many of its epochs are done."""
        file = self.path / CHECKPOINT
        if not file.exists():
            return 0
        tensors, metadata = _parse(_read(file), file)
        if metadata["rung"] != index:  # of the rung before: killed between finishing it and clearing up
            return 0
        tensors = _unpack(tensors, metadata)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(tensors[f"model.{name}"])
            for name, parameter in model.named_parameters():
                optimiser.state[parameter]["momentum_buffer"].copy_(tensors[f"momentum.{name}"])
        return metadata["epochs"]


def _compare(path: Path, old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> None:
    for name, value in new.items():
        if isinstance(value, dict):
            _compare(path, old[name], value, f"{name}.")
        elif old[name] != value:
            raise LadderError(
                f"{path} was begun with {prefix}{name} = {old[name]!r} and is now asked for {value!r}; "
                "ask for the old value or choose another folder"
            )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pack(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> bytes:
    """Tensors as a safetensors file, those that are mostly zeros as index and value."""
    packed, sparse = {}, {}
    for name, tensor in tensors.items():
        dense = tensor.detach().contiguous() + 0  # -0.0 becomes 0.0, as it would by way of index and value
        index = dense.flatten().nonzero()[:, 0]
        if dense.dtype == torch.float32 and 2 * len(index) < dense.numel() < 2**31:
            packed[f"{name}.index"] = index.to(torch.int32)
            packed[f"{name}.value"] = dense.flatten()[index]
            sparse[name] = list(dense.shape)
        else:
            packed[name] = dense
    return serialise(packed, {METADATA_KEY: json.dumps({**metadata, "sparse": sparse}, sort_keys=True)})


def _unpack(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The inverse of _pack."""
    tensors = dict(tensors)
    for name, shape in metadata["sparse"].items():
        dense = torch.zeros(shape)
        index = tensors.pop(f"{name}.index").long()
        dense.view(-1)[index] = tensors.pop(f"{name}.value")
        tensors[name] = dense
    return tensors


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LadderError(f"{path} cannot be read ({error.strerror}); restore it") from error


def _parse(content: bytes, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that _pack wrote."""
    try:
        tensors = parse(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, json.loads(header["__metadata__"][METADATA_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise LadderError(f"{path} is damaged ({error}); delete it and build again") from error
