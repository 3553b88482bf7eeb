"""A network that is exported as it is, from a factory and a file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from entropi.host.networks.archs import imported

NAMED = 3  # parameters that a refusal lists


@dataclass(frozen=True)
class Module:
    """A torch module with what it wants: pixels as (pixel / 255 - mean) / std, one value a channel, and a shape."""

    name: str
    module: nn.Module
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def encoder(self) -> nn.Module:
        return self.module


def load_module(spec: str, weights: Path | None) -> nn.Module:
    """What `package.module:factory`, called without arguments, returns, with the weights of a .safetensors file.

    Raises ValueError for a factory that cannot be imported or called, and for weights that are not its own."""
    factory = imported(spec)
    try:
        module = factory()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"network {spec!r} raised {said}; its factory is called without arguments") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"network {spec!r} returned a {type(module).__name__}; a factory returns a torch.nn.Module")
    if weights is not None:
        try:
            state = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{weights} cannot be read as safetensors ({error}); save a state dict there") from error
        _check(spec, weights, state, module.state_dict())
        module.load_state_dict(state)
    return module.eval()


def _check(spec: str, weights: Path, given: dict, wanted: dict) -> None:
    """One line about every name and shape that differs."""
    both = sorted(given.keys() & wanted.keys())
    wrong = [
        f"{name} is {list(given[name].shape)} and not {list(wanted[name].shape)}"
        for name in both
        if given[name].shape != wanted[name].shape
    ]
    for what, names in (("missing", wanted.keys() - given.keys()), ("unknown", given.keys() - wanted.keys())):
        wrong += [f"{name} is {what}" for name in sorted(names)]
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        listed = ", ".join(wrong[:NAMED])
        raise ValueError(f"{weights} does not fit {spec!r}: {listed}{more}; give the weights of this network")
