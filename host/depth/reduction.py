"""A reduction: one network, made shallower step by step, kept in a folder.

    depth.json                settings and, for every finished step, edits, accuracy, costs, entropies and so on
    step-00.safetensors ...   the networks, as training/tensors.py packs them
    checkpoint.safetensors    while a step is trained: weights and momentum after its last whole epoch

Step 0 is the whole network, or what the reduction was begun with: a rung of a ladder or a step of another reduction.
Every later step starts from the file of the step before. A step's network is the traced
network of its name, the step's edits applied, the file's weights; what it costs and what is exported is that network
folded. Every file is replaced in one step, so a run that was killed goes on where it stopped and ends with the same
bytes (same machine, torch version, number of threads and of processes)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import fx, nn

from entropi.device.files import write_json
from entropi.host import data
from entropi.host.data import Split
from entropi.host.depth import lacoot, methods, schedules, signs
from entropi.host.depth.methods import Method
from entropi.host.depth.statistics import recalibrate
from entropi.host.networks import archs, graph
from entropi.host.networks.fold import Folded, fold, summary
from entropi.host.networks.graph import Block, Edit
from entropi.host.networks.inference import MEAN, STD, normalise, outputs, top1
from entropi.host.progress import Progress
from entropi.host.training import pruning
from entropi.host.training.engine import Engine, engine
from entropi.host.training.ladder import Rung, check_parts, check_start
from entropi.host.training.runs import (
    CHECKPOINT,
    DEPTH,
    RunError,
    check_begin,
    compare,
    load,
    store,
    stored,
    train,
    using_threads,
)
from entropi.host.training.schedule import Schedule
from entropi.host.training.trainer import Task, Trainer

FORMAT = 1
VALIDATION = 0.1  # the share of the training images that only judges
MAX_DROP = 1.0  # points
ERROR_IMAGES = 256  # on which an approximate merge is measured


@dataclass(frozen=True)
class Step:
    """One network of a reduction.

    edits: all that lead to it; removed: rectifiers fewer that switch than in step 0; validation_accuracy: on training
    images that it was not trained on, 0..1; accuracy: on the source's test split; cost: of the folded encoder, see
    fold.summary; mean, std: per channel, the network takes (pixel / 255 - mean) / std; input_shape: (C, H, W);
    approximate: whether merges may be wrong at the border; seed, source_sha256: what decides on which images it was
    judged; metadata: the step's entry in depth.json."""

    index: int
    edits: tuple[Edit, ...]
    removed: int
    validation_accuracy: float
    accuracy: float
    cost: dict[str, int]
    path: Path
    arch: str
    method: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    approximate: bool
    seed: int
    source_sha256: str
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.arch}-{self.method}{self.index:02d}"

    def model(self) -> fx.GraphModule:
        """The whole network in evaluation mode, head of the source task included, not folded. Raises RunError where
        the file is damaged, ValueError where the network of this name is no longer the one that was reduced."""
        net = graph.build(self.arch, len(self.classes), self.edits)
        net.load_state_dict(stored(self.path, self.metadata), assign=True)
        return net.to(memory_format=torch.channels_last).eval()

    def folded(self) -> Folded:
        """Everything before the head, folded: normalised float32 (N, C, H, W) to (N, features)."""
        return fold(archs.split(self.model())[0], self.input_shape, self.approximate)

    def encoder(self) -> nn.Module:
        """The folded encoder, in evaluation mode; what is exported."""
        return self.folded().module


class Reduction(Sequence[Step]):
    """The finished steps of a folder, the whole network first. Make one with Reduction.open or Reduction.build."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self._content = content
        self.settings = settings = content["settings"]
        self.arch: str = settings["arch"]
        self.source: str = settings["source"]
        self.seed: int = settings["seed"]
        self.threads: int = settings["threads"]
        self.precision: str = settings["precision"]
        self.max_drop: float = settings["max_drop"]
        self.approximate: bool = settings["approximate"]
        self.method: Method = methods.method(settings["method"], self.arch).changed(**settings["parameters"])
        self.schedule = Schedule(**settings["schedule"])
        self.classes: tuple[str, ...] = tuple(content["classes"])
        self.input_shape: tuple[int, int, int] = tuple(content["input_shape"])
        self._steps = [self._step(index, entry) for index, entry in enumerate(content["steps"])]

    def _step(self, index: int, entry: dict[str, Any]) -> Step:
        return Step(
            index=index,
            edits=tuple(Edit(*edit) for edit in entry["edits"]),
            removed=entry["removed"],
            validation_accuracy=entry["validation_accuracy"],
            accuracy=entry["accuracy"],
            cost=entry["cost"],
            path=self.path / entry["file"],
            arch=self.arch,
            method=self.method.name,
            classes=self.classes,
            input_shape=self.input_shape,
            mean=tuple(self._content["mean"]),
            std=tuple(self._content["std"]),
            approximate=self.approximate,
            seed=self.seed,
            source_sha256=self.settings["source_sha256"],
            metadata=entry,
        )

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index):
        return self._steps[index]

    def drop(self, step: Step) -> float:
        """Points of validation accuracy that a step lies below step 0."""
        return round(100 * (self[0].validation_accuracy - step.validation_accuracy), 9)

    @property
    def complete(self) -> bool:
        """Whether the last step dropped too far, had nothing left to remove, or was the last round."""
        if not self._steps:
            return False
        last = self[-1]
        rounds = self.method.rounds
        return self.drop(last) > self.max_drop or last.metadata["exhausted"] or last.index == rounds

    @property
    def best(self) -> Step:
        """The last step whose drop is allowed. Raises RunError where there is no step yet."""
        if not self._steps:
            raise RunError(f"{self.path} holds no step yet; run entropi depth --out {self.path}")
        return [step for step in self if self.drop(step) <= self.max_drop][-1]

    @classmethod
    def open(cls, path: str | Path) -> Reduction:
        """Open a reduction, finished or not. Raises RunError naming what is missing or malformed."""
        path = Path(path)
        return load(path, DEPTH, FORMAT, "reduction", "entropi depth", lambda content: cls(path, content))

    @classmethod
    def build(
        cls,
        path: str | Path,
        method: str | Method,
        *,
        arch: str = "resnet18",
        source: str | data.Dataset = "builtin:characters",
        schedule: Schedule = schedules.SCHEDULES["short"],
        start: Rung | Step | None = None,
        max_drop: float = MAX_DROP,
        approximate: bool = False,
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Reduction:
        """Make every step that the folder does not hold yet, and open it.

        `method` is a name, its parameters the paper's, or a Method. `source` is what data.load takes, or a Dataset.
        `start` is what to begin with: a rung of a ladder, or a step of another reduction with the same seed and source,
        so that several methods share one trained network. It has the same `arch` and classes, its pruned weights stay
        zero, what it left out stays out, and it is not trained before anything is removed; a folder that holds a step
        needs it no more. `max_drop` is in points of accuracy on validation images, a tenth of the training images; a
        rung was trained on these, too, so its own accuracy there is too high. `threads` is how many torch may use;
        None: as many as the folder was begun with, or torch's own number. `progress` is called after every optimiser
        step with (steps done, steps in all, text), of each step of the reduction anew.
        Raises RunError when the folder was begun with other settings, TrainingError when the loss diverges, ValueError
        for unknown names, values out of range, and networks that the method finds nothing in."""
        path = Path(path)
        method = methods.method(method, arch) if isinstance(method, str) else method
        check_begin(path, DEPTH, seed)
        begun = cls.open(path) if (path / DEPTH).exists() else None
        if threads is None:
            threads = torch.get_num_threads() if begun is None else begun.threads
        for name, value, least in (("seed", seed, 0), ("threads", threads, 1), ("max_drop", max_drop, 0)):
            if not value >= least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        settings = {
            "method": method.name,
            "parameters": method.settings(),
            "arch": arch,
            "source": source if isinstance(source, str) else source.name,
            "start": start
            and {"step" if isinstance(start, Step) else "rung": start.index, "sha256": start.metadata["sha256"]},
            "max_drop": max_drop,
            "approximate": approximate,
            "seed": seed,
            "schedule": schedules.settings(schedule),
        }
        if begun is not None:
            if begun and start is None:
                settings["start"] = begun.settings["start"]
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
            "validation_images": len(_divided(dataset.train, seed)[1]),
        }
        check_parts(schedule, len(dataset.train) - settings["validation_images"], work)
        if begun is not None:
            compare(path, begun.settings, settings)
        else:
            net = _check(method, arch, dataset, start, seed)
            if work.rank == 0:
                _begin(path, settings, dataset, net, work)
        work.wait()
        with using_threads(threads):
            while not (reduction := cls.open(path)).complete:
                reduction._reduce(dataset, start, work, progress or (lambda done, total, text: None))
                work.wait()
        return reduction

    def _reduce(self, dataset: data.Dataset, start: Rung | Step | None, work: Engine, progress: Progress) -> None:
        """Make the next step."""
        started = time.perf_counter()
        index = len(self)
        training, validation = _divided(dataset.train, self.seed)
        net, edits = self._network(index, start)
        self._train(index, net, training, start, work, progress)
        if self.method.removes == "weights" and index:
            recalibrate(net, training)
        found = signs.measure(net, training)
        net.cpu()
        if self.method.removes == "weights" and index:
            edits += (linear := methods.without_effect(net, found))
            graph.edit(net, linear)
        rectifiers = {
            name: {
                "entropy": found[name].entropy(self.method.zero, self.method.mean),
                "nonlinearity": float(found[name].nonlinearity.mean()),
            }
            for name in (node.name for node in graph.rectifiers(net))
        }
        entry = {"edits": [[edit.node, edit.by] for edit in edits], "rectifiers": rectifiers}
        if self.method.removes == "blocks":
            entry["distances"] = self._distances(index, net, training)
        switching = sum(value["entropy"] > 0 for value in rectifiers.values())
        whole = len(self[0].metadata["rectifiers"]) if index else len(rectifiers)
        entry["removed"] = whole - switching
        entry["exhausted"] = self._round(copy.deepcopy(net), entry, index + 1) is None
        entry |= self._graded(net, validation, dataset.test)
        if work.rank:
            return
        file = self.path / f"step-{index:02d}.safetensors"
        entry |= store(file, net.state_dict(), {"arch": self.arch, "index": index, "edits": entry["edits"]})
        entry |= {"seconds": round(time.perf_counter() - started, 2), "torch": torch.__version__}
        self._content["steps"].append(entry)
        write_json(self.path / DEPTH, self._content)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def _network(self, index: int, start: Rung | Step | None) -> tuple[fx.GraphModule, list[Edit]]:
        """The network that a step begins with, and the edits that lead to it."""
        if index == 0:
            if start is not None:
                model = start.model()
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    model = archs.build(self.arch, len(self.classes)).to(memory_format=torch.channels_last)
            return model if isinstance(model, fx.GraphModule) else graph.trace(model), _edits(start)
        before = self[index - 1]
        net = before.model()
        edits = self._round(net, before.metadata, index)
        return net, [*before.edits, *(edits or [])]

    def _round(self, net: fx.GraphModule, before: dict[str, Any], index: int) -> list[Edit] | None:
        """Remove from `net`, in place, what round `index` removes, by the entry of the step before; returns the edits,
        None where there is nothing left."""
        entropies = {name: value["entropy"] for name, value in before["rectifiers"].items()}
        if self.method.removes == "weights":
            masks = methods.budget_masks(net, entropies, self.method.zeta)
            for weight, mask in masks.items():
                weight.data.masked_fill_(~mask, 0)
            return [] if masks else None
        if self.method.removes == "rectifiers":
            edits = methods.least_entropy(net, entropies)
        else:
            edits = methods.least_distance(self._blocks(), before["distances"], index - 1)
        graph.edit(net, edits)
        return edits or None

    def _blocks(self) -> list[Block]:
        return [Block(*block) for block in self._content["blocks"]]

    def _train(
        self,
        index: int,
        net: fx.GraphModule,
        training: Split,
        start: Rung | Step | None,
        work: Engine,
        progress: Progress,
    ) -> None:
        blocks = self.method.removes == "blocks"
        if index == 0 and start is not None or index and blocks:  # trained already; LaCoOT does not retrain
            return
        plan = self.schedule.plan(index)
        weights = pruning.prunable(net.to(work.device))
        masks = {weight: weight != 0 for weight in weights.values() if (weight == 0).any()}
        model, penalty = net, None
        if blocks:
            distances = lacoot.Distances(net, self._blocks(), self.method.projections)
            model, penalty = distances.network, lambda: self.method.lambda_ * distances().mean()
        trainer = Trainer(model, Task.of(training, work, self.precision), plan, masks, penalty)
        text = f"step {index}, {len(graph.rectifiers(net))} rectifiers"
        total = plan.steps(len(training))
        train(trainer, self.path, {"step": index}, (self.seed, index), lambda step: progress(step, total, text))

    def _distances(self, index: int, net: fx.GraphModule, training: Split) -> dict[str, float]:
        """Of every block, by its name, measured once: on the whole network."""
        if index:
            return self[0].metadata["distances"]
        batch = min(self.schedule.batch, len(training))
        return lacoot.distances(net, self._blocks(), self.method.projections, training, batch, self.seed)

    def _graded(self, net: fx.GraphModule, validation: Split, test: Split) -> dict[str, Any]:
        """Accuracies and costs, of the network as it would be exported."""
        encoder, head = archs.split(net)
        images = normalise(torch.from_numpy(validation.images[:ERROR_IMAGES])) if self.approximate else False
        folded = fold(encoder, self.input_shape, images)
        return {
            "validation_accuracy": _accuracy(folded.module, head, validation),
            "accuracy": _accuracy(folded.module, head, test),
            "cost": summary(folded.module, self.input_shape),
            "fold": folded.report(),
        }


def _accuracy(encoder: nn.Module, head: nn.Linear, split: Split) -> float:
    features = outputs(encoder, split)
    with torch.inference_mode():
        return top1(head(torch.from_numpy(features)).numpy(), split.labels)


def _divided(training: Split, seed: int) -> tuple[Split, Split]:
    """Images to train and to measure on, and others that judge."""
    order = np.random.default_rng(seed).permutation(len(training))
    count = max(1, round(VALIDATION * len(order)))
    return training[np.sort(order[count:])], training[np.sort(order[:count])]


def _edits(start: Rung | Step | None) -> list[Edit]:
    """Those that lead to what a reduction begins with."""
    if isinstance(start, Rung):
        return [Edit(*edit) for edit in start.edits]
    return list(start.edits) if start else []


def _check(method: Method, arch: str, dataset: data.Dataset, start: Rung | Step | None, seed: int) -> fx.GraphModule:
    """The network to begin with, without numbers. Raises ValueError for images that it does not take, for a start that
    does not fit, and where the method finds nothing to remove."""
    channels = dataset.input_shape[0]
    if channels != archs.CHANNELS:
        raise ValueError(
            f"{dataset.name} has {channels} channels and {arch} takes {archs.CHANNELS}; "
            f"choose a source with {archs.CHANNELS}"
        )
    if start is not None:
        check_start(start, arch, dataset)
    if isinstance(start, Step) and (start.seed, start.source_sha256) != (seed, dataset.fingerprint()):
        raise ValueError(
            f"{start.name} was trained on images that would judge here; start with its source and its seed, "
            f"{start.seed}"
        )
    archs.check_input(arch, len(dataset.classes), dataset.input_shape)
    with torch.device("meta"):
        model = archs.build(arch, len(dataset.classes))
    net = graph.trace(model)
    if archs.head_name(net) != archs.head_name(model):
        raise ValueError(f"{arch} does not run its layers in the order in which it defines them; define the head last")
    graph.edit(net, _edits(start))
    name = arch if start is None else start.name
    for node in graph.removable(net):
        graph.channel_axis(net, node)
    if method.removes == "blocks":
        if not graph.blocks(net, dataset.input_shape):
            raise ValueError(f"{name} has no block with a shortcut whose output is shaped as its input; choose easier")
    elif not graph.removable(net):
        raise ValueError(f"{name} has no rectifier that could be removed: no ReLU, ReLU6, Hardswish, SiLU or GELU")
    return net


def _begin(path: Path, settings: dict[str, Any], dataset: data.Dataset, net: fx.GraphModule, work: Engine) -> None:
    """Write the depth.json of a reduction without steps."""
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "settings": {**settings, "precision": work.precision(settings["schedule"]["precision"], net)},
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        "mean": [MEAN] * archs.CHANNELS,
        "std": [STD] * archs.CHANNELS,
        "blocks": [list(asdict(block).values()) for block in graph.blocks(net, dataset.input_shape)],
        "steps": [],
    }
    (path / CHECKPOINT).unlink(missing_ok=True)  # of a reduction that is no more
    write_json(path / DEPTH, content)
