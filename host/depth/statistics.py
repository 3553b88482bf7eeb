"""Batch norm's statistics, taken again.

Behind a layer without weights everything is one constant, which batch norm takes away while it trains. Its running mean
follows only to within rounding, of bfloat16 it may be, and what is left is divided by a deviation of next to nothing:
the network then is another one when it is used than when it was trained."""

from __future__ import annotations

import torch
from torch import nn

from entropi.host.data import Split
from entropi.host.networks.graph import BATCH_NORMS
from entropi.host.networks.inference import BATCH, normalise


def recalibrate(net: nn.Module, split: Split, batch: int = BATCH) -> None:
    """Set mean and variance of every batch norm to their averages over the whole batches of `split`, float32, the rest
    of the network in evaluation mode; it is left in evaluation mode."""
    norms = [module for module in net.eval().modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    batch = min(batch, len(split))
    device = next(net.parameters()).device
    with torch.no_grad():
        for start in range(0, len(split) - batch + 1, batch):
            net(normalise(torch.from_numpy(split.images[start : start + batch]).to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
