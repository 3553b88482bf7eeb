"""Plain training and evaluation: SGD with momentum, cosine learning rate, uint8 pixels in.

Every epoch draws its random numbers from (seed, rung, epoch) alone, so what ran before it has no influence; with
the same number of threads on the same machine, results are equal bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from entropi.host.data import Split

MEAN, STD = 0.5, 0.5
EVALUATION_BATCH = 256

# Called with (steps done, steps in all, what is being done).


class TrainingError(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Optimisation:
    """One training run: SGD at `lr` falling to 0 along a cosine over all `epochs`."""

    epochs: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    samples: int | None = None  # random samples an epoch sees; None: all

    def steps_an_epoch(self, size: int) -> int:
        """Optimiser steps in an epoch over a training set of `size` samples; a last, short batch is left out."""
        samples = min(size, self.samples or size)
        return samples // min(self.batch, samples)


def normalise(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, C, H, W) to float32 in channels_last: (pixel / 255 - MEAN) / STD."""
    pixels = torch.from_numpy(images).to(torch.float32, memory_format=torch.channels_last)
    return pixels.mul_(1 / (255 * STD)).sub_(MEAN / STD)


def fit_epoch(
    model: nn.Module,
    optimiser: torch.optim.SGD,
    split: Split,
    plan: Optimisation,
    epoch: int,
    seed: tuple[int, ...],
    on_step: Callable[[int], None] | None = None,
) -> float:
    """Train for one epoch, number `epoch` of `plan.epochs`; returns the mean loss. `on_step` gets the steps done.

    Raises TrainingError when the loss is not finite."""
    steps = plan.steps_an_epoch(len(split))
    batch = min(plan.batch, len(split), plan.samples or plan.batch)
    draw = np.random.SeedSequence([*seed, epoch])
    order = np.random.default_rng(draw).permutation(len(split))
    model.train()
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draw.generate_state(1)[0]))
        for step in range(steps):
            progress = (epoch * steps + step) / (plan.epochs * steps)
            for group in optimiser.param_groups:
                group["lr"] = plan.lr * 0.5 * (1 + math.cos(math.pi * progress))
            index = order[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(model(normalise(split.images[index])), torch.from_numpy(split.labels[index]))
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} in epoch {epoch + 1} at learning rate {plan.lr}; choose a lower one"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += value
            if on_step:
                on_step(step + 1)
    return total / steps


def sgd(model: nn.Module, plan: Optimisation) -> torch.optim.SGD:
    """The optimiser, with a zero momentum buffer for every parameter (so that it can be saved at any time)."""
    optimiser = torch.optim.SGD(
        model.parameters(), plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True
    )
    for parameter in model.parameters():
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def hold_zero(weights: dict[str, nn.Parameter], masks: dict[str, torch.Tensor]) -> None:
    """Keep pruned weights at exactly zero while training: their gradient, and with it their momentum, is zero.

    The weights must be zero already (pruning.apply) and momentum fresh."""
    for name, mask in masks.items():
        weights[name].register_post_accumulate_grad_hook(_multiply_gradient(weights[name], mask))


def _multiply_gradient(weight: torch.Tensor, mask: torch.Tensor) -> Callable[[torch.Tensor], None]:
    factor = torch.zeros_like(weight).copy_(mask)

    def hook(parameter: torch.Tensor) -> None:
        parameter.grad.mul_(factor)

    return hook


def outputs(module: nn.Module, split: Split, batch: int = EVALUATION_BATCH) -> Iterator[np.ndarray]:
    """What the module in evaluation mode returns, batch by batch, as float32 (n, ...)."""
    module.eval()
    for start in range(0, len(split), batch):
        with torch.inference_mode():
            result = module(normalise(split.images[start : start + batch])).numpy()
        yield result  # outside, so that the caller's code does not run in inference mode


def accuracy(model: nn.Module, split: Split) -> float:
    """Top-1 accuracy, between 0 and 1."""
    right = 0
    for start, logits in zip(range(0, len(split), EVALUATION_BATCH), outputs(model, split), strict=True):
        right += int((logits.argmax(1) == split.labels[start : start + EVALUATION_BATCH]).sum())
    return right / len(split)
