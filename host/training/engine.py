"""Where a ladder is trained: in this process alone, or in all that torchrun started.

    torchrun --nproc-per-node 4 -m entropi.host.cli ladder ...

Several processes, one for each GPU or, without GPUs, several on the CPU, go through Lightning Fabric (the extra
`scale`): each takes its part of every batch and the gradients are averaged. Batch norm sees its own part only, so such
a ladder equals that of one process up to that and to rounding. All processes must see the ladder's folder."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from torch import nn

PRECISIONS = ("auto", "float32", "bfloat16")


class Engine:
    """One process and its device: the first GPU, or the CPU."""

    rank = 0
    processes = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    def setup(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to call instead of the model and the optimiser while training; they share their state with these."""
        return model, optimiser

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the whole batch, in every process."""
        loss.backward()

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over the processes."""
        return value.item()

    def wait(self) -> None:
        """Return when all processes are here."""

    def autocast(self, precision: str) -> AbstractContextManager:
        """Forward passes in `precision`, float32 or bfloat16; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def precision(self, asked: str, model: nn.Module) -> str:
        """float32 or bfloat16. auto: bfloat16 where the processor multiplies it faster, which on a CPU means AVX-512
        BF16 or AMX and a network without grouped convolutions (their bfloat16 kernels are slower than float32)."""
        if asked != "auto":
            return asked
        if self.device.type == "cuda":
            return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
        return "bfloat16" if torch.cpu._is_avx512_bf16_supported() and not grouped else "float32"


class Distributed(Engine):
    """One of the processes that torchrun started. Raises RuntimeError where the extra `scale` is missing."""

    def __init__(self) -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            raise RuntimeError("several processes need Lightning Fabric; pip install 'entropi[scale]'") from error
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
        self._fabric = Fabric(accelerator="auto", devices=local, num_nodes=nodes, strategy="ddp")
        self._fabric.launch()
        self.device = self._fabric.device
        self.rank = self._fabric.global_rank
        self.processes = self._fabric.world_size

    def setup(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        return self._fabric.setup(model, optimiser)

    def backward(self, loss: torch.Tensor) -> None:
        self._fabric.backward(loss)

    def mean(self, value: torch.Tensor) -> float:
        return self._fabric.all_reduce(value.detach(), reduce_op="mean").item()

    def wait(self) -> None:
        self._fabric.barrier()


def engine() -> Engine:
    """The engine for this process: Distributed where torchrun started several, Engine otherwise."""
    return Distributed() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Engine()
