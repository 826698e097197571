"""A detector that is a little another one: each channel of its backbone weakened or strengthened at random.

A picture that is recognised all the same owes little to the weights of this one network, so that other
networks recognise it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from whybox.detectors.base import WhiteBoxDetector


@contextmanager
def uneven_channels(detector: WhiteBoxDetector, deviation: float, random: torch.Generator) -> Iterator[None]:
    """Multiply the output channels of the backbone's convolutions by 1 + `deviation`·N(0, 1), in the block.

    Done on the weights, which are far fewer than the outputs. When the block ends the module has its own
    parameters again; a graph made inside keeps those that it was made with.

    Args:
        detector: whose backbone it is; 0 leaves it alone.
        deviation: standard deviation of the factors.
        random: source of the factors, on the CPU.
    """
    if not deviation:
        yield
        return
    convolutions = [module for module in detector.backbone.modules() if isinstance(module, nn.Conv2d)]
    own = [
        (module, name, value)
        for module in convolutions
        for name, value in module.named_parameters(recurse=False)
    ]
    factors = {
        module: 1 + deviation * torch.randn(module.out_channels, generator=random) for module in convolutions
    }
    try:
        for module, name, value in own:
            shape = (-1, *[1] * (value.ndim - 1))
            changed = value * factors[module].to(value).view(shape)
            module.register_parameter(name, nn.Parameter(changed, requires_grad=False))
        yield
    finally:
        for module, name, value in own:
            module.register_parameter(name, value)
