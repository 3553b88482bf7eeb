"""LaCoOT: how far the output of a block is from its input, as distributions over a batch.

The distance is POT's max-sliced Wasserstein distance: of both batches, flattened and projected onto random directions,
the largest of the one-dimensional distances of order 2. It is added to the loss while the network is trained; the
blocks of the smallest distance are then left out."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn

from entropi.host.data import Split
from entropi.host.networks.graph import Block, find
from entropi.host.networks.inference import output_batches

os.environ.setdefault("POT_BACKEND_DISABLE_TENSORFLOW", "1")  # POT would load it where it is installed


class Distances:
    """`network` is the network, weights shared, that remembers what goes into the blocks and what comes out."""

    def __init__(self, net: fx.GraphModule, blocks: Sequence[Block], projections: int) -> None:
        self.network = fx.GraphModule(net, copy.deepcopy(net.graph))
        self.projections = projections
        taps = {name: _Tap() for block in blocks for name in (block.start, block.end)}
        self._pairs = [(taps[block.start], taps[block.end]) for block in blocks]
        for index, (name, tap) in enumerate(taps.items()):
            node = find(self.network, name)
            self.network.add_submodule(f"tap_{index}", tap)
            with self.network.graph.inserting_after(node):
                self.network.graph.call_module(f"tap_{index}", (node,))
        self.network.recompile()

    def __call__(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """The distance of every block, (blocks,), on the batch that last ran through `network`, which needs at least
        two samples. Directions come from `generator`, or from torch's own."""
        from ot.sliced import max_sliced_wasserstein_distance

        found = []
        for start, end in self._pairs:
            with torch.autocast(start.value.device.type, enabled=False):
                before, after = (tap.value.flatten(1).float() for tap in (start, end))
                directions = F.normalize(torch.randn(before.shape[1], self.projections, generator=generator), dim=0)
                directions = directions.to(before.device)
                found.append(max_sliced_wasserstein_distance(before, after, projections=directions))
        return torch.stack(found)


class _Tap(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.value = x
        return x


def distances(
    net: fx.GraphModule, blocks: Sequence[Block], projections: int, split: Split, batch: int, seed: int
) -> dict[str, float]:
    """The mean distance of every block by its name, over the whole batches of `split`, in evaluation mode."""
    measured = Distances(net, blocks, projections)
    generator = torch.Generator().manual_seed(seed)
    whole = split[: len(split) // batch * batch]
    rows = []
    for _ in output_batches(measured.network, whole, batch):
        with torch.inference_mode():
            rows.append(measured(generator).double().cpu())
    return dict(zip((block.name for block in blocks), torch.stack(rows).mean(0).tolist(), strict=True))
