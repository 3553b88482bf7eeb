"""Products with padding, left out while a network runs.

On the small maps at the end of a network a padded kernel is larger than what it can reach: a 3x3 convolution of a 1x1
map reads its centre tap alone, and on a 2x2 map five of nine taps meet padding at every output. Where every output sees
the whole map the convolution is a matrix product; elsewhere the taps that no output needs are cut off. The result is
the same up to rounding."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn


@contextlib.contextmanager
def trimmed(model: nn.Module, input_shape: tuple[int, int, int]) -> Iterator[None]:
    """Within the context every Conv2d of `model` leaves out products that an input of (C, H, W) meets padding in.

    Weights, gradients and state dict keep their shapes; the gradient of a tap left out is zero. Inputs of another
    size must not be used meanwhile."""
    changed = []
    try:
        for conv, size in _input_sizes(model, input_shape).items():
            if forward := _trim(conv, size):
                conv.forward = forward
                changed.append(conv)
        yield
    finally:
        for conv in changed:
            del conv.forward


def _input_sizes(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[nn.Conv2d, tuple[int, int]]:
    """(H, W) of what every zero-padded Conv2d that runs gets; one that gets several sizes is left out."""
    sizes: dict[nn.Conv2d, set[tuple[int, int]]] = {}

    def note(conv: nn.Conv2d, args: tuple[torch.Tensor, ...]) -> None:
        sizes.setdefault(conv, set()).add(tuple(args[0].shape[2:]))

    convs = [  # a subclass may compute something else
        m
        for m in model.modules()
        if type(m) is nn.Conv2d and m.padding_mode == "zeros" and not isinstance(m.padding, str)
    ]
    hooks = [conv.register_forward_pre_hook(note) for conv in convs]
    parameter = next(model.parameters())
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
    return {conv: next(iter(seen)) for conv, seen in sizes.items() if len(seen) == 1}


def _trim(conv: nn.Conv2d, size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward with fewer products, or with the same as a matrix product; None where the layer's own is best."""
    axes = list(zip(size, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True))
    firsts = [_firsts(*axis) for axis in axes]
    if conv.groups == 1 and all(firsts):
        return functools.partial(_multiply, conv, *firsts)
    reaches = [_reach(*axis) for axis in axes]
    if all(stop - start == kernel for (start, stop, _, _), kernel in zip(reaches, conv.kernel_size, strict=True)):
        return None
    return functools.partial(_convolve, conv, *reaches)


def _outputs(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _firsts(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    """Along one axis: for every output the tap that meets the first pixel; empty unless every output meets all."""
    firsts = [padding - output * stride for output in range(_outputs(size, kernel, stride, padding, dilation))]
    whole = dilation == 1 and all(0 <= first <= kernel - size for first in firsts)
    return firsts if whole else []


def _reach(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int, int, int]:
    """Along one axis: the first tap that meets data and the one after the last, and the padding left on either side."""
    outputs = _outputs(size, kernel, stride, padding, dilation)
    meets = [
        tap
        for tap in range(kernel)
        if any(0 <= output * stride + tap * dilation - padding < size for output in range(outputs))
    ]
    start, stop = (meets[0], meets[-1] + 1) if meets else (0, kernel)
    before = padding - start * dilation
    after = (outputs - 1) * stride + (stop - start - 1) * dilation + 1 - size - before
    return start, stop, before, after


def _multiply(conv: nn.Conv2d, rows: list[int], columns: list[int], x: torch.Tensor) -> torch.Tensor:
    """The convolution as a matrix product of all pixels with the taps that each output has over them."""
    height, width = x.shape[2:]
    windows = [(slice(row, row + height), slice(column, column + width)) for row in rows for column in columns]
    weight = _Windows.apply(conv.weight, windows).permute(0, 1, 3, 4, 2).reshape(-1, x[0].numel())
    bias = None if conv.bias is None else conv.bias.repeat(len(windows))
    y = F.linear(x.permute(0, 2, 3, 1).reshape(len(x), -1), weight, bias)  # pixel by pixel: views of channels_last
    return y.view(len(x), len(rows), len(columns), conv.out_channels).permute(0, 3, 1, 2)


def _convolve(conv: nn.Conv2d, vertical: tuple[int, ...], horizontal: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """The convolution with fewer taps and less padding."""
    (top, bottom, *pad_y), (left, right, *pad_x) = vertical, horizontal
    weight = _Windows.apply(conv.weight, [(slice(top, bottom), slice(left, right))])[0]
    padding = (pad_y[0], pad_x[0])
    if pad_y[0] != pad_y[1] or pad_x[0] != pad_x[1] or min(padding) < 0:
        x, padding = F.pad(x, (*pad_x, *pad_y)), 0
    return F.conv2d(x, weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


class _Windows(torch.autograd.Function):
    """Windows (rows, columns) of the taps of a weight (O, I, H, W), as (windows, O, I, height, width) in which inputs
    lie innermost. The gradient has the memory format of the weight, so that no optimiser has to copy it."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, windows: Sequence[tuple[slice, slice]]) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.windows = windows
        taps = weight.permute(0, 2, 3, 1)
        return torch.stack([taps[:, rows, columns] for rows, columns in windows]).permute(0, 1, 4, 2, 3)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        whole = torch.zeros_like(weight)
        for part, (rows, columns) in zip(gradient, ctx.windows, strict=True):
            whole[:, :, rows, columns] += part
        return whole, None
