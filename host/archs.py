"""The networks a ladder can be built from, and where their encoder ends."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn


def _resnet18(classes: int) -> nn.Module:
    from torchvision.models import resnet18  # torchvision takes seconds to load

    return resnet18(weights=None, num_classes=classes)


# From a name to a function of the number of classes. Every network ends in a Linear, its head.
ARCHS: dict[str, Callable[[int], nn.Module]] = {"resnet18": _resnet18}
CHANNELS = 3


def check(name: str) -> None:
    """Raises ValueError listing the choices when `name` is not one of them."""
    if name not in ARCHS:
        raise ValueError(f"network {name!r} is not known; choose from {', '.join(ARCHS)}")


def build(name: str, classes: int) -> nn.Module:
    """The network with freshly drawn weights, for float32 (N, 3, H, W). Raises ValueError for an unknown name."""
    check(name)
    return ARCHS[name](classes)


def head_name(model: nn.Module) -> str:
    """The name of the head: the last Linear. Raises ValueError where there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no Linear layer; an encoder needs a network that ends in one")
    return names[-1]


def split(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """(encoder, head), both copies: the encoder is everything before the last Linear and returns (N, features)."""
    name = head_name(model)
    encoder = copy.deepcopy(model)
    head = encoder.get_submodule(name)
    encoder.set_submodule(name, nn.Identity())
    return encoder, head
