"""Training of a ladder against the plain PyTorch loop of the tutorials: images a second, and accuracy.

    python benchmarks/training_speed.py [--source SPEC] [--threads N] [--steps N] [--repeats N] [--epochs N] [--seeds N]

Both train torchvision's ResNet18 on the same images: batches of 128, SGD with momentum 0.9 and weight decay 1e-4, a
cosine learning rate, random crops with a border of 4 black pixels and mirroring, and for a pruned rung the same masks.

ours   what `entropi ladder` runs: uint8 images in memory, channels_last, bfloat16 where the processor is faster with
       it (and, apart, float32), products with padding left out, masks on the gradient alone
plain  a DataLoader over torchvision transforms, float32, contiguous, torch.nn.utils.prune; with the better of 0 and 2
       workers, which is chosen first

Speed is measured dense and pruned, all in turn within every repeat, by the clock, so a busy machine spoils it.
Accuracy is that of both on the source's test images after the same epochs from the same initial weights: dense, then
pruned to the same share and trained again. Writes results/training_speed.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from entropi.device.files import write_json
from entropi.host import data
from entropi.host.networks import archs
from entropi.host.networks.inference import MEAN, STD, accuracy
from entropi.host.provenance import provenance
from entropi.host.training import pruning
from entropi.host.training.engine import Engine
from entropi.host.training.schedule import PRESETS
from entropi.host.training.trainer import Optimisation, Task, Trainer

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numpy")
ARCH = "resnet18"
ALPHA = 0.1
WORKERS = (0, 2)
WARM_UP = 3  # steps before the clock starts
CLAIM = 1.5  # times as many images a second

Masks = dict[str, torch.Tensor]
Step = Callable[[int], None]


class Images(Dataset):
    """What a tutorial's Dataset does: one image, augmented, as a normalised float32 tensor, and its label."""

    def __init__(self, split: data.Split) -> None:
        self.images = split.images.transpose(0, 2, 3, 1)
        self.labels = split.labels
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(split.images.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((MEAN,) * 3, (STD,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def masks_of(model: nn.Module) -> Masks:
    """The masks that keep ALPHA of the model's weights."""
    return pruning.magnitude_masks(pruning.prunable(model), ALPHA)


def ours(
    model: nn.Module,
    split: data.Split,
    plan: Optimisation,
    masks: Masks,
    seed: int,
    on_step: Step,
    precision: str = "auto",
) -> nn.Module:
    """Train as a rung is trained."""
    model = model.to(memory_format=torch.channels_last)
    weights, engine = pruning.prunable(model), Engine()
    pruning.apply(weights, masks)
    task = Task.of(split, engine, engine.precision(precision, model))
    trainer = Trainer(model, task, plan, {weights[name]: mask for name, mask in masks.items()})
    for epoch in range(plan.epochs):
        trainer.epoch(epoch, (seed, 0), on_step)
    return model


def plain(
    model: nn.Module, split: data.Split, plan: Optimisation, masks: Masks, seed: int, on_step: Step, workers: int
) -> nn.Module:
    """Train as the tutorials do."""
    torch.manual_seed(seed)
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in masks}
    for name, mask in masks.items():
        prune.custom_from_mask(layers[name], "weight", mask)
    loader = DataLoader(
        Images(split), plan.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    optimiser = torch.optim.SGD(model.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay)
    steps = plan.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: plan.rate(step / steps) / plan.lr)
    model.train()
    for _ in range(plan.epochs):
        for done, (images, labels) in enumerate(loader, 1):
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            scheduler.step()
            on_step(done)
    for layer in layers.values():
        prune.remove(layer, "weight")
    return model


class Enough(Exception):
    """The clock has seen all the steps it wanted."""


def images_a_second(train: Callable, model: nn.Module, split: data.Split, masks: Masks, steps: int) -> float:
    """The speed of one loop over `steps` steps, those of the warm-up apart."""
    plan, clock = PRESETS["short"].plan(0), []

    def tick(_: int) -> None:
        clock.append(time.perf_counter())
        if len(clock) > WARM_UP + steps:
            raise Enough

    try:
        train(copy.deepcopy(model), split, plan, masks, 0, tick)
    except Enough:
        return plan.batch * steps / (clock[-1] - clock[WARM_UP])
    raise ValueError(f"{split.images.shape[0]} images make {len(clock)} steps and {WARM_UP + steps + 1} are needed")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(f(values), 4) for name, f in (("median", statistics.median), ("least", min), ("most", max))}


def speed(model: nn.Module, split: data.Split, workers: int, steps: int, repeats: int) -> dict:
    """Images a second of both loops, and ours as a multiple of the plain one, dense and pruned."""
    loops = {
        "plain": partial(plain, workers=workers),
        "ours": ours,
        "ours in float32": partial(ours, precision="float32"),
    }
    result = {}
    for name, masks in (("dense", {}), ("pruned", masks_of(model))):
        runs = []
        for repeat in range(repeats):
            order = list(loops)[:: (-1) ** repeat]
            runs.append({loop: images_a_second(loops[loop], model, split, masks, steps) for loop in order})
        result[name] = {
            "images_a_second": {loop: spread([run[loop] for run in runs]) for loop in loops},
            "times_plain": {
                loop: spread([run[loop] / run["plain"] for run in runs]) for loop in loops if loop != "plain"
            },
        }
    return result


def accuracies(source: data.Dataset, workers: int, epochs: int, seeds: int) -> Iterator[dict[str, list[float]]]:
    """For every seed the test accuracy of ours and plain, dense and then pruned."""
    schedule = PRESETS["short"]
    dense = Optimisation(epochs, schedule.lr, schedule.batch, augment=True)
    rung = Optimisation(1, schedule.lr_rung, schedule.batch, augment=True)
    for seed in range(seeds):
        torch.manual_seed(seed)
        start, ends = archs.build(ARCH, len(source.classes)), {}
        for name, train in (("ours", ours), ("plain", partial(plain, workers=workers))):
            model = train(copy.deepcopy(start), source.train, dense, {}, seed, lambda step: None)
            ends[name] = [accuracy(model, source.test)]
            model = train(model, source.train, rung, masks_of(model), seed + seeds, lambda step: None)
            ends[name].append(accuracy(model, source.test))
        yield ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="builtin:characters", help="what both train on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both; all by default")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="dense epochs before the accuracy is measured")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = data.load(options.source)
    torch.manual_seed(0)
    model = archs.build(ARCH, len(source.classes))

    tried = {n: images_a_second(partial(plain, workers=n), model, source.train, {}, options.steps) for n in WORKERS}
    workers = max(tried, key=tried.get)
    measured = speed(model, source.train, workers, options.steps, options.repeats)
    ends = list(accuracies(source, workers, options.epochs, options.seeds))
    accuracy_of = {
        kind: {name: spread([end[name][index] for end in ends]) for name in ("ours", "plain")}
        | {"difference": spread([end["ours"][index] - end["plain"][index] for end in ends])}
        for index, kind in enumerate(("dense", "pruned"))
    }
    kind, colon, place = options.source.partition(":")
    options.source = kind + colon + Path(place).name  # where it lies on this machine is no matter
    result = {
        "command": "python benchmarks/training_speed.py "
        + " ".join(f"--{name} {value}" for name, value in vars(options).items()),
        "arch": ARCH,
        "input": list(source.input_shape),
        "train_images": len(source.train),
        "test_images": len(source.test),
        "batch": PRESETS["short"].batch,
        "alpha_pruned": ALPHA,
        "our_precision": Engine().precision("auto", model),
        "plain_workers": workers,
        "plain_images_a_second_by_workers": {str(n): round(value, 1) for n, value in tried.items()},
        "claim": f"at least {CLAIM} times as many images a second",
        "claim_holds": all(kind["times_plain"]["ours"]["median"] >= CLAIM for kind in measured.values()),
        "speed": measured,
        "accuracy": accuracy_of,
        **provenance(*PACKAGES),
    }
    write_json(ROOT / "results" / "training_speed.json", result)


if __name__ == "__main__":
    main()
