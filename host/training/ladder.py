"""The ladder: one network, pruned further on every rung and retrained, kept in a folder.

    ladder.json               settings and, for every finished rung, alpha, accuracy, entropy, SHA-256 and so on
    rung-00.safetensors ...   the networks, as tensors.py packs them
    checkpoint.safetensors    while a rung is trained: weights and momentum after its last whole epoch

Rung 0 is the network trained, or a step of a reduction (host/depth/) that the ladder was begun with; ladder.json then
holds the edits that lead to it. Such a rung is kept and retrained as it is, with its batch norm, and measured and
exported folded.

Every rung starts from the file of the rung before, and every file is replaced in one step. So a build that was killed
goes on where it stopped and ends with the same bytes (same machine, torch version, number of threads and of processes).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import nn

from entropi.device.files import write_json
from entropi.host import data, entropy
from entropi.host.networks import archs
from entropi.host.networks.inference import MEAN, STD, outputs, top1
from entropi.host.progress import Progress
from entropi.host.training import pruning
from entropi.host.training.engine import Engine, engine
from entropi.host.training.runs import (
    CHECKPOINT,
    LADDER,
    check_begin,
    compare,
    load,
    store,
    stored,
    train,
    using_threads,
)
from entropi.host.training.schedule import PRESETS, Schedule
from entropi.host.training.trainer import Task, Trainer

FORMAT = 2


class Start(Protocol):
    """What a ladder can be begun with: a step of a reduction."""

    name: str
    index: int
    arch: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    edits: Sequence[Any]
    approximate: bool
    metadata: dict[str, Any]

    def model(self) -> nn.Module:
        """The whole network, not folded."""


@dataclass(frozen=True)
class Rung:
    """One network of a ladder.

    alpha: fraction kept of what the schedule counts; nonzeros: weights of `encoder()` that are not zero;
    source_accuracy: on the `source_images` images of the source's test split, 0..1; source_entropy: entropy.DEFAULT of
    the encoder's output there, nats; mean, std: per channel, the network takes (pixel / 255 - mean) / std; input_shape:
    (C, H, W); start: the step that the ladder was begun with, as ladder.json keeps it; edits: (node, by) of each that
    leads to that step, see networks/graph.py; metadata: the rung's entry in ladder.json."""

    index: int
    alpha: float
    nonzeros: int
    source_accuracy: float
    source_images: int
    source_entropy: float
    path: Path
    arch: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    start: dict[str, Any] | None
    edits: tuple[tuple[str, str], ...]
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.start['name'] if self.start else self.arch}-rung{self.index:02d}"

    def state(self) -> dict[str, torch.Tensor]:
        """The state dict, dense. Raises RunError where the file is damaged."""
        return stored(self.path, self.metadata)

    def model(self) -> nn.Module:
        """The whole network in evaluation mode, head of the source task included, not folded."""
        if self.start:
            from entropi.host.networks import graph  # loads torchvision, which takes seconds

            model = graph.build(self.arch, len(self.classes), (graph.Edit(*edit) for edit in self.edits))
        else:
            with torch.device("meta"):
                model = archs.build(self.arch, len(self.classes))
        model.load_state_dict(self.state(), assign=True)
        return model.to(memory_format=torch.channels_last).eval()

    def encoder(self) -> nn.Module:
        """Everything before the head, in evaluation mode: normalised float32 (N, C, H, W) to (N, features). Folded
        where the ladder was begun with a step."""
        return _split(self.model(), self.start, self.input_shape)[0]


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
        self.precision: str = settings["precision"]
        self.schedule = Schedule(**settings["schedule"])
        self.classes: tuple[str, ...] = tuple(content["classes"])
        self.input_shape: tuple[int, int, int] = tuple(content["input_shape"])
        self.mean: tuple[float, ...] = tuple(content["mean"])
        self.std: tuple[float, ...] = tuple(content["std"])
        self.start: dict[str, Any] | None = settings.get("start")
        self.settings = {**settings, "schedule": asdict(self.schedule)}
        self._rungs = [self._rung(index, entry) for index, entry in enumerate(content["rungs"])]

    def _rung(self, index: int, entry: dict[str, Any]) -> Rung:
        return Rung(
            index=index,
            alpha=entry["alpha"],
            nonzeros=entry["nonzeros"],
            source_accuracy=entry["source_accuracy"],
            source_images=self._content["settings"]["source_test_images"],
            source_entropy=entry["source_entropy"],
            path=self.path / entry["file"],
            arch=self.arch,
            classes=self.classes,
            input_shape=self.input_shape,
            mean=self.mean,
            std=self.std,
            start=self.start,
            edits=tuple((node, by) for node, by in self._content.get("edits", ())),
            metadata=entry,
        )

    @property
    def complete(self) -> bool:
        """Whether every rung of the schedule is there."""
        accuracies, entropies = ([getattr(r, n) for r in self] for n in ("source_accuracy", "source_entropy"))
        return self.schedule.finished(accuracies, entropies)

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
        """Open a ladder, finished or not. Raises RunError naming what is missing or malformed."""
        path = Path(path)
        return load(path, LADDER, FORMAT, "ladder", "entropi ladder", lambda content: cls(path, content))

    @classmethod
    def build(
        cls,
        path: str | Path,
        *,
        arch: str = "resnet18",
        source: str | data.Dataset = "builtin:characters",
        schedule: Schedule = PRESETS["demo"],
        start: Start | None = None,
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Ladder:
        """Train and prune every rung that the folder does not hold yet, and open it.

        `source` is what data.load takes, or a Dataset. `start` is a step of a reduction of the same `arch` and classes
        to prune instead of a network trained here: it is rung 0 as it is, and the schedule's shares are of the weights
        that it has left; a folder that holds a rung needs it no more. `threads` is how many torch may use; None: as
        many as the folder was begun with, or torch's own number. `progress` is called after every optimiser step with
        (steps done, steps in all, text). Raises RunError when the folder was begun with other settings, TrainingError
        when the loss diverges, ValueError for unknown names and a start that does not fit."""
        path = Path(path)
        check_begin(path, LADDER, seed)
        begun = cls.open(path) if (path / LADDER).exists() else None
        if threads is None:
            threads = torch.get_num_threads() if begun is None else begun.threads
        for name, value, least in (("seed", seed, 0), ("threads", threads, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        settings = {
            "arch": arch,
            "source": source if isinstance(source, str) else source.name,
            "start": start
            and {
                "step": start.index, "sha256": start.metadata["sha256"], "name": start.name,
                "approximate": start.approximate,
            },
            "seed": seed,
            "schedule": asdict(schedule),
        }  # fmt: skip
        if begun is not None:
            if begun and start is None:
                settings["start"] = begun.start
            compare(path, begun.settings, settings)
            if begun.complete and isinstance(source, str):
                return begun
        archs.check(arch)
        work = engine()
        dataset = data.load(source) if isinstance(source, str) else source
        settings |= {
            "threads": threads,
            "processes": work.processes,
            "device": work.device.type,
            "source_sha256": dataset.fingerprint(),
            "source_test_images": len(dataset.test),
        }
        check_parts(schedule, len(dataset.train), work)
        if begun is not None:
            compare(path, begun.settings, settings)
        elif work.rank == 0:
            _begin(path, settings, dataset, start, work)
        work.wait()
        with using_threads(threads):
            while not (ladder := cls.open(path)).complete:
                ladder._climb(dataset, start, work, progress or (lambda done, total, text: None))
                work.wait()
        return ladder

    def _climb(self, dataset: data.Dataset, start: Start | None, work: Engine, progress: Progress) -> None:
        """Make the next rung."""
        started = time.perf_counter()
        index, shares = len(self), self.schedule.shares()
        steps = [self.schedule.plan(rung).steps(len(dataset.train)) for rung in range(len(shares))]
        if self.start:
            steps[0] = 0
        begin = sum(steps[:index])
        text = f"rung {index}, {shares[index]:.2%} of the weights"
        if index == 0 and start is not None:
            model = start.model().to(work.device)
        else:
            model = self._train(index, dataset, work, lambda step: progress(begin + step, sum(steps), text))
        encoder, head = _split(model, self.start, self.input_shape)
        features = outputs(encoder, dataset.test)
        with torch.inference_mode():
            logits = head.cpu()(torch.from_numpy(features)).numpy()
        entry = {
            "alpha": _alpha(model, self._whole(model), self.schedule.counts),
            "nonzeros": pruning.nonzeros(pruning.weights(encoder)),
            "source_accuracy": top1(logits, dataset.test.labels),
            "source_entropy": entropy.ESTIMATORS[entropy.DEFAULT](features),
        }
        if work.rank:
            return
        file = self.path / f"rung-{index:02d}.safetensors"
        kept = store(file, model.state_dict(), {"arch": self.arch, "index": index, **entry})
        entry |= kept | {
            "seconds": round(time.perf_counter() - started, 2),
            "torch": torch.__version__,
        }
        self._content["rungs"].append(entry)
        write_json(self.path / LADDER, self._content)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def _train(self, index: int, dataset: data.Dataset, work: Engine, on_step: Callable[[int], None]) -> nn.Module:
        """The trained network of one rung, from the rung before and, where there is one, the checkpoint."""
        plan, masks = self.schedule.plan(index), {}
        if index == 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = archs.build(self.arch, len(self.classes)).to(memory_format=torch.channels_last)
        else:
            model = self[index - 1].model()
            weights = pruning.prunable(model)
            share = self._whole(model) / sum(weight.numel() for weight in weights.values())
            masks = pruning.magnitude_masks(weights, share * self.schedule.shares()[index])
            pruning.apply(weights, masks)
            masks = {weights[name]: mask for name, mask in masks.items()}
        task = Task.of(dataset.train, work, self.precision)
        trainer = Trainer(model.to(work.device), task, plan, masks)
        train(trainer, self.path, {"rung": index}, (self.seed, index), on_step)
        return model

    def _whole(self, model: nn.Module) -> int:
        """How many encoder weights the schedule's shares are of: all, or those that the step to begin with has left."""
        weights = pruning.prunable(model)
        if not self.start:
            return sum(weight.numel() for weight in weights.values())
        return pruning.nonzeros(pruning.prunable(self[0].model()) if len(self) else weights)


def check_start(start: Start, arch: str, dataset: data.Dataset) -> None:
    """Raises ValueError where a trained network is another than `arch`, or was trained for other classes or images."""
    if (start.arch, start.classes, start.input_shape) != (arch, dataset.classes, dataset.input_shape):
        size = "x".join(map(str, start.input_shape))
        raise ValueError(
            f"{start.name} is {start.arch} for {len(start.classes)} classes and {size} images; start with that network "
            "and that source"
        )


def check_parts(schedule: Schedule, size: int, work: Engine) -> None:
    """Raises ValueError where a batch cannot be divided equally among the processes."""
    for rung in (0, 1):
        batch = schedule.plan(rung).batch_size(size)
        if batch % work.processes:
            raise ValueError(
                f"a batch of {batch} samples cannot be divided among {work.processes} processes; "
                f"choose a multiple of {work.processes}"
            )


def _begin(path: Path, settings: dict[str, Any], dataset: data.Dataset, start: Start | None, work: Engine) -> None:
    """Write the ladder.json of a ladder without rungs."""
    channels = dataset.input_shape[0]
    if channels != archs.CHANNELS:
        raise ValueError(
            f"{dataset.name} has {channels} channels and {settings['arch']} takes {archs.CHANNELS}; "
            f"choose a source with {archs.CHANNELS}"
        )
    if start is not None:
        check_start(start, settings["arch"], dataset)
    archs.check_input(settings["arch"], len(dataset.classes), dataset.input_shape)
    path.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = archs.build(settings["arch"], len(dataset.classes))
    precision = work.precision(settings["schedule"]["precision"], model)
    content = {
        "format": FORMAT,
        "settings": {**settings, "precision": precision},
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        "mean": [MEAN] * channels,
        "std": [STD] * channels,
        "rungs": [],
    }
    if start is not None:
        content["edits"] = [[edit.node, edit.by] for edit in start.edits]
    (path / CHECKPOINT).unlink(missing_ok=True)  # of a ladder that is no more
    write_json(path / LADDER, content)


def _split(
    model: nn.Module, start: dict[str, Any] | None, input_shape: tuple[int, int, int]
) -> tuple[nn.Module, nn.Linear]:
    """(encoder, head), as they are measured and exported: the encoder is folded where the ladder was begun with a
    step."""
    encoder, head = archs.split(model)
    if start:
        from entropi.host.networks.fold import fold  # loads torchvision, which takes seconds

        encoder = fold(encoder, input_shape, start["approximate"]).module
    return encoder, head


def _alpha(model: nn.Module, whole: int, counts: str) -> float:
    """The share kept of what `counts` names (see Schedule), `whole` encoder weights being 1."""
    weights = pruning.prunable(model)
    rest = 0
    if counts == "parameters":
        rest = sum(p.numel() for p in model.parameters()) - sum(weight.numel() for weight in weights.values())
    return (rest + pruning.nonzeros(weights)) / (rest + whole)
