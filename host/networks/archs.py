"""The networks a ladder can be built from, and where their encoder ends.

A name is one of ARCHS, one of torchvision's classifiers, or the user's own as package.module:factory."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from entropi.host.networks.resnet8 import ResNet8

CHANNELS = 3
WITHOUT_LINEAR = ("squeezenet1_0", "squeezenet1_1")  # they end in a convolution
AUXILIARY_HEADS = ("googlenet", "inception_v3")  # built without: with them the output is a tuple while training


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision.models import get_model

    options = {"aux_logits": False, "init_weights": True} if name in AUXILIARY_HEADS else {}
    # regnet computes its widths with tensors, and those of the meta device hold nothing
    with torch.device("cpu") if name.startswith("regnet") else contextlib.nullcontext():
        return get_model(name, weights=None, num_classes=classes, **options)


def _resnet18_cifar(classes: int) -> nn.Module:
    model = _resnet18_cifar_pool(classes)
    model.maxpool = nn.Identity()
    return model


def _resnet18_cifar_pool(classes: int) -> nn.Module:
    model = _torchvision("resnet18", classes)
    model.conv1 = nn.Conv2d(CHANNELS, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


# From a name to a function of the number of classes. Every network ends in a Linear, its head.
ARCHS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": functools.partial(_torchvision, "resnet18"),
    "resnet18-cifar": _resnet18_cifar,
    "resnet18-cifar-pool": _resnet18_cifar_pool,
    "mobilenet_v3_large": functools.partial(_torchvision, "mobilenet_v3_large"),
    "mobilenet_v3_small": functools.partial(_torchvision, "mobilenet_v3_small"),
    "resnet8": ResNet8,
}


def classifiers() -> list[str]:
    """The names of torchvision's image classifiers that end in a Linear."""
    from torchvision import models  # torchvision takes seconds to load

    return [name for name in models.list_models(module=models) if name not in WITHOUT_LINEAR]


def check(name: str) -> None:
    """Raises ValueError as `build` does. Costs nothing for ARCHS; the user's own is built, for two classes."""
    if name not in ARCHS:
        with torch.device("meta"):
            build(name, 2)


def build(name: str, classes: int) -> nn.Module:
    """The network with freshly drawn weights, for float32 (N, 3, H, W) to logits (N, classes).

    On the meta device (`with torch.device("meta")`) the weights are left out, and load_state_dict(assign=True) makes
    the network whole. Raises ValueError for an unknown name, listing close ones; for a network that does not end in a
    Linear of `classes` outputs; and for a factory of the user's that cannot be imported or called."""
    model = _factory(name)(classes)
    try:
        head = head_name(model)
    except ValueError as error:
        raise ValueError(f"network {name!r} cannot be used: {error}") from error
    outputs = model.get_submodule(head).out_features
    if outputs != classes:
        raise ValueError(
            f"network {name!r} has {outputs} outputs in {head!r}, its last Linear, where {classes} classes were asked "
            "for; give that layer as many outputs as the factory is given classes"
        )
    return model


def check_input(name: str, classes: int, input_shape: tuple[int, int, int]) -> None:
    """Raises ValueError where the network does not take (C, H, W) images or does not return what its head returns.

    Two images pass forward, once in training and once in evaluation: without arithmetic, on the meta device, unless the
    network is the user's own. The head's result is replaced by known numbers, which have to come out untouched."""
    with torch.device("meta"):
        model = build(name, classes)
    head = head_name(model)
    logits = torch.linspace(-1, 1, 2 * classes).reshape(2, classes)
    passed = []

    def replace(*_: Any) -> torch.Tensor:
        passed.append(head)
        return logits.clone()

    model.get_submodule(head).register_forward_hook(replace)
    images = torch.zeros(2, *input_shape, device=next(model.parameters()).device)
    for training in (True, False):
        try:
            with torch.no_grad():
                output = model.train(training)(images)
            same = output.device == logits.device and torch.equal(output, logits)
        except Exception as error:  # whatever the user's own code raises
            if not passed:
                size = "x".join(map(str, input_shape))
                raise ValueError(
                    f"network {name!r} does not take {size} images ({_said(error)}); choose another size or network"
                ) from error
            same = False
        if not same:
            raise ValueError(
                f"network {name!r} does not return what {head!r}, its last Linear, returns; let forward() end with "
                "that layer, define it last, and leave softmax to the loss"
            )


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


def _factory(name: str) -> Callable[[int], nn.Module]:
    if name in ARCHS:
        return ARCHS[name]
    if ":" in name:
        return functools.partial(_own, name)
    known = classifiers()
    if name in known or name in WITHOUT_LINEAR:  # build says what the latter lack
        return functools.partial(_torchvision, name)
    near = difflib.get_close_matches(name, {*ARCHS, *known}) or ARCHS
    raise ValueError(
        f"network {name!r} is not known; choose from {', '.join(near)} or what `entropi archs --all` lists, "
        "or give your own as package.module:factory"
    )


def _own(spec: str, classes: int) -> nn.Module:
    """The user's network, with its numbers even on the meta device: its buffers need not be in the state dict."""
    factory = imported(spec)
    try:
        with torch.device("cpu"):
            model = factory(classes)
    except Exception as error:
        raise ValueError(
            f"network {spec!r} raised {_said(error)} when called with {classes}; a factory takes the number of classes "
            "as its only required argument"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"network {spec!r} returned an object of type {type(model).__name__}; a factory returns a torch.nn.Module"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(f"network {spec!r} has lazy layers; give every layer its input size")
    return model


def imported(spec: str) -> Callable[[int], Any]:
    """What package.module:factory names, the current directory searched first."""
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"network {spec!r} is malformed; write your own as package.module:factory, without .py")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"network {spec!r}: there is no module {error.name!r} in {here} or among the installed packages; "
                "run where python -m would find it"
            ) from error
        raise ValueError(f"network {spec!r}: importing {module_name} raised {_said(error)}; mend that first") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module))
        hint = f"did you mean {near[0]}?" if near else "define it there"
        raise ValueError(f"network {spec!r}: {module_name} has no {attribute!r}; {hint}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise ValueError(
            f"network {spec!r} is of type {type(factory).__name__}; name a function or class that takes the number of "
            "classes"
        )
    return factory


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(" .:")
