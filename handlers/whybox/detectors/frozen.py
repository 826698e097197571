"""Convolutions with frozen weights, whose gradient by the input needs the weights alone.

PyTorch keeps a convolution's input for the gradient by its weights, wanted or not. Below an activation that
keeps its own input, such as SiLU, that is half of what a graph keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


class _Frozen(torch.autograd.Function):
    """A convolution that keeps the shape of its input instead of the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, gradient, *ctx.settings), None, None, None


def frozen(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Return a convolution's function, to be differentiated once and by its input alone.

    Raises:
        ValueError: if its weights are to be differentiated by, or its borders are no zeros.
    """
    if conv.weight.requires_grad or (conv.bias is not None and conv.bias.requires_grad):
        raise ValueError("expected frozen weights")
    if not can_be_frozen(conv):
        raise ValueError(
            f"expected zeros at the borders, a number of them; got {conv.padding_mode!r}, {conv.padding!r}"
        )
    settings = conv.stride, conv.padding, conv.dilation, conv.groups
    return lambda x: _Frozen.apply(x, conv.weight, conv.bias, settings)


def can_be_frozen(conv: nn.Conv2d) -> bool:
    """Whether `frozen` takes a convolution, its weights being frozen."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
