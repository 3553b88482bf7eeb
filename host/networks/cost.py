"""What learning costs: ENTROPI's Table 2, by its rules where they can be found and by ours, stated, where not.

Frozen encoder (the rules reproduce the paper's digits): FLOPs = 2 x batch x features x classes, the head's forward
pass over one batch of 32; bytes = 12 for every head parameter, its float32 weight, gradient and momentum.

Full fine-tuning (no rule found gives the paper's figures for both networks, so this is our own count): FLOPs =
3 x 2 x MACs x batch, the backward pass counted as two forward ones, MACs those of convolutions and linear layers;
bytes = 12 for every parameter of the network plus whatever PyTorch's autograd keeps of one batch's forward pass.

MB and M are decimal.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from entropi.host.networks import archs

BYTES_A_PARAMETER = 12


@dataclass(frozen=True)
class Cost:
    """flops: floating-point operations of learning one batch; bytes: memory it needs."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Table2Row:
    """One network and mode of Table 2: our cost, and the paper's in millions of FLOPs and megabytes."""

    network: str
    mode: str
    ours: Cost
    paper_mflops: float
    paper_megabytes: float


@dataclass(frozen=True)
class LayerMacs:
    """Multiply-accumulates a layer needs for one image. dense: every weight; nonzero: pruned weights left out.
    Taps that meet padding are counted."""

    name: str
    dense: int
    nonzero: int


@dataclass(frozen=True)
class Summary:
    """One network: parameters, head included; features, what the encoder returns; head_parameters, weights and biases;
    macs: multiply-accumulates of one image, or None where it does not take one of that shape, and problem says why."""

    name: str
    parameters: int
    features: int
    head_parameters: int
    macs: int | None
    problem: str | None


# (millions of FLOPs, MB); VLCS, 5 classes.
PAPER_TABLE_2 = {
    "ResNet18": {"frozen": (0.16, 0.03), "full": (30.03, 131.49)},
    "MobileNetV3-Large": {"frozen": (0.41, 0.08), "full": (229.05, 48.23)},
}
TABLE_2_ARCHS = {"ResNet18": "resnet18", "MobileNetV3-Large": "mobilenet_v3_large"}
TABLE_2_CLASSES = 5
TABLE_2_BATCH = 32


def frozen_cost(features: int, classes: int, batch: int = TABLE_2_BATCH) -> Cost:
    """Cost of learning a head of `classes` on `features` while the encoder stays as it is."""
    return Cost(2 * batch * features * classes, BYTES_A_PARAMETER * (features + 1) * classes)


def full_cost(model: nn.Module, input_shape: tuple[int, int, int], batch: int = TABLE_2_BATCH) -> Cost:
    """Cost of training every weight of the network on a batch of (C, H, W) images."""
    flops = 3 * 2 * sum(layer.dense for layer in macs(model, input_shape)) * batch
    return Cost(flops, BYTES_A_PARAMETER * parameters(model) + _saved_bytes(model, input_shape, batch))


def table_2(input_shape: tuple[int, int, int] = (3, 32, 32), batch: int = TABLE_2_BATCH) -> list[Table2Row]:
    """Our Table 2 beside the paper's. The paper states neither input size nor stem; torchvision's networks here."""
    rows = []
    for name, arch in TABLE_2_ARCHS.items():
        model = archs.build(arch, TABLE_2_CLASSES)
        head = model.get_submodule(archs.head_name(model))
        frozen = frozen_cost(head.in_features, TABLE_2_CLASSES, batch)
        rows.append(Table2Row(name, "frozen", frozen, *PAPER_TABLE_2[name]["frozen"]))
        rows.append(Table2Row(name, "full", full_cost(model, input_shape, batch), *PAPER_TABLE_2[name]["full"]))
    return rows


def summary(name: str, classes: int, input_shape: tuple[int, int, int]) -> Summary:
    """The figures of a network by its name, for (C, H, W) images. Raises ValueError where archs.build does."""
    with torch.device("meta"):
        model = archs.build(name, classes)
    head = model.get_submodule(archs.head_name(model))
    count, problem = None, None
    try:
        archs.check_input(name, classes, input_shape)
        count = sum(layer.dense for layer in macs(model, input_shape))
    except ValueError as error:
        problem = str(error)
    return Summary(name, parameters(model), head.in_features, parameters(head), count, problem)


def parameters(model: nn.Module) -> int:
    """How many trainable numbers the network has, zeros included."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_shape: tuple[int, int, int]) -> list[LayerMacs]:
    """Multiply-accumulates of every convolution and linear layer for one (C, H, W) image, in the order they run.

    nonzero = the sum over output channels of non-zero weights x output positions. On the meta device nothing is
    computed and every weight counts as non-zero. Attention in torchvision's transformers is left out, projections
    included: it calls functions instead of layers."""
    layers: list[LayerMacs] = []

    def count(name: str):
        def hook(module: nn.Module, _, output: torch.Tensor) -> None:
            weight = module.weight
            positions = output.numel() // weight.shape[0]
            nonzeros = weight.numel() if weight.is_meta else int(weight.count_nonzero())
            layers.append(LayerMacs(name, weight.numel() * positions, nonzeros * positions))

        return hook

    was_training = model.training
    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return layers


def _saved_bytes(model: nn.Module, input_shape: tuple[int, int, int], batch: int) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, parameters left out, each storage once."""
    model = copy.deepcopy(model).train()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.random.fork_rng(devices=[]):
        result = model(torch.zeros(batch, *input_shape))
    del result
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
