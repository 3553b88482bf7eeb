"""Global magnitude pruning (ENTROPI, eq. 7)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from entropi.host.networks.archs import head_name


def weights(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """Those of convolutions and linear layers; no biases, no batch norm."""
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {f"{n}.weight": m.weight for n, m in encoder.named_modules() if isinstance(m, layers)}


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that alpha counts: those of all layers but the head."""
    head = f"{head_name(model)}.weight"
    return {name: weight for name, weight in weights(model).items() if name != head}


def magnitude_masks(weights: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """Boolean masks that keep the round(alpha * N) largest |theta| of all N weights together.

    Equal magnitudes go by flat index, in the order of `weights`: the first are kept. A weight that is zero counts
    as pruned and never returns, so masks of falling alpha are nested, and there are fewer than round(alpha * N) where
    fewer are non-zero. Raises ValueError for an alpha outside 0..1 and for weights that are not finite."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it is the fraction of weights kept, between 0 and 1")
    magnitude = np.concatenate([w.detach().abs().flatten().numpy(force=True) for w in weights.values()])
    if not np.isfinite(magnitude).all():
        raise ValueError("weights hold NaN or infinity; training diverged, so lower the learning rate")
    keep = min(round(alpha * magnitude.size), int(np.count_nonzero(magnitude)))
    kept = np.zeros(magnitude.size, bool)
    if keep:
        smallest = np.partition(magnitude, magnitude.size - keep)[magnitude.size - keep]
        kept = magnitude > smallest
        ties = np.flatnonzero(magnitude == smallest)
        kept[ties[: keep - np.count_nonzero(kept)]] = True
    masks, start = {}, 0
    for name, weight in weights.items():
        masks[name] = torch.from_numpy(kept[start : start + weight.numel()].reshape(tuple(weight.shape)))
        start += weight.numel()
    return masks


def apply(weights: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> None:
    """Set pruned weights to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].masked_fill_(~mask, 0)


def nonzeros(weights: dict[str, torch.Tensor]) -> int:
    """How many weights are not zero."""
    return sum(int(w.count_nonzero()) for w in weights.values())
