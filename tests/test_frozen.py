"""Convolutions that keep no input: the gradient is the convolution's own, and the input is let go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whybox.detectors.frozen import can_be_frozen, frozen

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "grouped": {"kernel_size": 5, "padding": 2, "groups": 2},
}


def convolution(**settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, **settings).double().requires_grad_(False)


def picture(layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    made = torch.randn((2, 4, 9, 12), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return made.to(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_gradient_is_the_convolutions_own(settings: dict[str, Any], layout: torch.memory_format) -> None:
    conv, x = convolution(**settings), picture(layout)
    own, other = conv(x), frozen(conv)(x)
    assert torch.equal(own, other)
    seed = torch.randn(own.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for laid_out in (seed, seed.to(memory_format=torch.channels_last)):
        (expected,) = torch.autograd.grad(own, x, laid_out, retain_graph=True)
        (got,) = torch.autograd.grad(other, x, laid_out, retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_input_is_not_kept(keeps: bool) -> None:
    conv, x = convolution(**SETTINGS["plain"]), picture()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = conv(x) if keeps else frozen(conv)(x)
    assert (x.data_ptr() in kept) is keeps, "PyTorch's own does, or this module is no longer needed"


def test_what_cannot_be_frozen() -> None:
    for settings in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        conv = convolution(kernel_size=3, **settings)
        assert not can_be_frozen(conv)
        with pytest.raises(ValueError, match="expected zeros at the borders"):
            frozen(conv)
    conv = convolution(kernel_size=3)
    assert can_be_frozen(conv)
    with pytest.raises(ValueError, match="expected frozen weights"):
        frozen(conv.requires_grad_())
