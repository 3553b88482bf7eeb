"""What quantising cost: accuracy of a linear head on features, and the noise that every layer added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from entropi.export.graph import Graph
from entropi.export.integer import Network

MAX_DROP = 1.0
WORST = 5  # layers that a refusal names


class QualityError(RuntimeError):
    """Quantising costs more accuracy than it may; the message names the layers with the most noise."""


@dataclass(frozen=True)
class Grade:
    """Accuracy, 0..1, of a head on `images` samples that it has not learned: on float32 features and on int8 ones.
    `error` is the standard error of the difference: from the samples on which the two disagree."""

    images: int
    float32: float
    int8: float
    error: float

    @property
    def drop(self) -> float:
        """Points that int8 costs."""
        return 100 * (self.float32 - self.int8)


def grade(
    float32: np.ndarray,
    int8: np.ndarray,
    labels: np.ndarray,
    held_out: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Grade:
    """Features [N, F] of the same images, with labels [N] of any integers. `held_out` trains a head and says which
    samples it gets right: sgd.held_out as the device does it, ridge.held_out in closed form."""
    right = [held_out(features, labels) for features in (float32, int8)]
    changed = int((right[0] != right[1]).sum())
    # Two more: where no sample changed, one could have.
    error = (changed + 2) ** 0.5 / len(labels)
    return Grade(len(labels), float(right[0].mean()), float(right[1].mean()), error)


def layer_noise(
    graph: Graph, inputs: np.ndarray, network: Network, activations: dict[int, np.ndarray]
) -> dict[str, float]:
    """Signal-to-noise ratio in dB of every layer whose result is a node of the graph, by the node's name.

    The signal is what torch computes of `inputs`, float32 [N, C, H, W]; the noise is how far `activations`, int8
    [N, C, H, W] of the same images by tensor, are from that. Layers without any noise, or without any signal, are left
    out."""
    nodes = {node.name for node in graph.nodes}  # torch.fx puts an underscore before digits, and TensorFlow has none
    expected: dict[str, np.ndarray] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node):
            result = super().run_node(n)
            if n.name in nodes:
                expected[n.name.lstrip("_")] = result.numpy().copy()  # an activation may work in place
            return result

    with torch.no_grad():
        Recorder(graph.folded).run(torch.from_numpy(inputs))
    found = {}
    for index, values in activations.items():
        tensor = network.tensors[index]
        name = (graph.output if index == network.output else tensor.name.removesuffix(".bias")).lstrip("_")
        if name not in expected:
            continue
        signal = expected[name].reshape(values.shape).astype(np.float64)
        noise = signal - (values.astype(np.float64) - tensor.zero_point) * tensor.scale
        if signal.any() and noise.any():
            found[name] = float(10 * np.log10((signal**2).sum() / (noise**2).sum()))
    return found


def refuse(grade: Grade, noise: dict[str, float], max_drop: float) -> None:
    """Raises QualityError where the drop is above `max_drop` points by more than its standard error."""
    if grade.drop - 100 * grade.error <= max_drop:
        return
    worst = sorted(noise, key=noise.__getitem__)[:WORST]
    named = ", ".join(f"{name} ({noise[name]:.1f} dB)" for name in worst)
    raise QualityError(
        f"int8 costs the head that the device trains {grade.drop:.1f} ± {100 * grade.error:.1f} points "
        f"({grade.float32:.1%} to {grade.int8:.1%} on {grade.images} held-out images) and --max-drop allows "
        f"{max_drop:g}; most noise: {named}; "
        "bring more or other calibration images, leave sparse weights as fine as others are (--weight-bits 8), choose "
        "another rung, or allow more"
    )
