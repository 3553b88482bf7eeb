"""Plain training: SGD with momentum, cosine learning rate, uint8 pixels in.

Every epoch draws its random numbers from (seed, rung, epoch) alone, so what ran before it has no influence; with
the same number of threads on the same machine, results are equal bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from entropi.host.data import Split
from entropi.host.networks.inference import normalise
from entropi.host.training.engine import Engine
from entropi.host.training.taps import trimmed

SHIFT = 4


class TrainingError(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Optimisation:
    """One training run: SGD at a rate that rises from a tenth of `lr` to `lr` over the share `warm_up` of all steps,
    then falls to 0 along a cosine.

    augment: every image is shifted by up to 4 pixels, the border filled with black, and mirrored at random."""

    epochs: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: float = 0.0
    samples: int | None = None  # random samples an epoch sees; None: all
    augment: bool = False

    def batch_size(self, size: int) -> int:
        """Samples a step on a training set of `size` samples: `batch`, or all there are in an epoch."""
        return min(self.batch, size, self.samples or size)

    def steps_an_epoch(self, size: int) -> int:
        """Optimiser steps in an epoch over a training set of `size` samples; a last, short batch is left out."""
        return min(size, self.samples or size) // self.batch_size(size)

    def rate(self, progress: float) -> float:
        """The learning rate after a share `progress` of all steps."""
        if progress < self.warm_up:
            return self.lr * (0.1 + 0.9 * progress / self.warm_up)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))

    def steps(self, size: int) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_an_epoch(size)


def shift_and_mirror(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image (N, C, H, W) moved by up to SHIFT pixels either way, black coming in, and every other one mirrored."""
    count, _, height, width = images.shape
    dy, dx = (torch.from_numpy(rng.integers(0, 2 * SHIFT + 1, count)) for _ in range(2))
    mirror = torch.from_numpy(rng.integers(0, 2, count).astype(bool)).to(images.device)
    windows = F.pad(images, (SHIFT,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    moved = windows[torch.arange(count), :, dy, dx]
    return torch.where(mirror[:, None, None, None], moved.flip(3), moved)


@dataclass(frozen=True)
class Task:
    """A training set where the engine wants it: uint8 (N, C, H, W) and int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
    engine: Engine
    precision: str

    @classmethod
    def of(cls, split: Split, engine: Engine, precision: str) -> Task:
        images, labels = (torch.from_numpy(array).to(engine.device) for array in (split.images, split.labels))
        return cls(images, labels, engine, precision)


class Trainer:
    """Trains one model on one task; pruned weights, those that `masks` leaves out, must be zero and stay so. What
    `penalty` gives after a forward pass is added to the loss."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: Optimisation,
        masks: dict[nn.Parameter, torch.Tensor] | None = None,
        penalty: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.plan = plan
        self.penalty = penalty
        self.optimiser = _sgd(model, plan)
        self._model, self._optimiser = task.engine.setup(model, self.optimiser)
        self._masks = [(weight, torch.zeros_like(weight).copy_(mask)) for weight, mask in (masks or {}).items()]

    @property
    def steps_an_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.plan.steps_an_epoch(len(self.task.labels))

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a later epoch depends on: weights, buffers and momentum."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state[f"momentum.{name}"] = self.optimiser.state[parameter]["momentum_buffer"]
        return state

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])

    def epoch(self, epoch: int, seed: tuple[int, ...], on_step: Callable[[int], None] | None = None) -> float:
        """Train for one epoch, number `epoch` of `plan.epochs`; returns the mean loss. `on_step` gets the steps done.

        Raises TrainingError when the loss is not finite."""
        plan, task, engine = self.plan, self.task, self.task.engine
        steps, size = self.steps_an_epoch, len(task.labels)
        batch = plan.batch_size(size)
        draw = np.random.SeedSequence([*seed, epoch])
        rng = np.random.default_rng(draw)
        order = rng.permutation(size)
        self.model.train()
        total = 0.0
        with torch.random.fork_rng(devices=[]), trimmed(self.model, tuple(task.images.shape[1:])):
            torch.manual_seed(int(draw.generate_state(1)[0]) + engine.rank)
            for step in range(steps):
                for group in self.optimiser.param_groups:
                    group["lr"] = plan.rate((epoch * steps + step) / (plan.epochs * steps))
                index = torch.from_numpy(order[step * batch : (step + 1) * batch])
                images = task.images[index]
                if plan.augment:
                    images = shift_and_mirror(images, rng)
                mine = slice(engine.rank, None, engine.processes)
                with engine.autocast(task.precision):
                    loss = F.cross_entropy(self._model(normalise(images[mine])), task.labels[index[mine]])
                if self.penalty:
                    loss = loss + self.penalty()
                value = engine.mean(loss)
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the loss is {value} in epoch {epoch + 1} at learning rate {plan.lr}; choose a lower one"
                    )
                self.optimiser.zero_grad()
                engine.backward(loss)
                for weight, mask in self._masks:  # a pruned weight's gradient, and with it its momentum, is zero
                    if weight.grad is not None:  # a layer that forward() does not use has none
                        weight.grad.mul_(mask)
                self._optimiser.step()
                total += value
                if on_step:
                    on_step(step + 1)
        return total / steps


def _sgd(model: nn.Module, plan: Optimisation) -> torch.optim.SGD:
    """The optimiser, with a zero momentum buffer for every parameter (so that it can be saved at any time)."""
    optimiser = torch.optim.SGD(
        model.parameters(), plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True
    )
    for parameter in model.parameters():
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
