"""A detector that is a little another one: each channel of its backbone weakened or strengthened at random.

A picture that is recognised all the same owes little to the weights of this one network, so that other
networks recognise it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from whybox.detectors.base import WhiteBoxDetector


@contextmanager
def uneven_channels(detector: WhiteBoxDetector, deviation: float, random: torch.Generator) -> Iterator[None]:
    """Multiply the output channels of the backbone's convolutions by 1 + `deviation`·N(0, 1), in the block.

    The network is as before when it ends.

    Args:
        detector: whose backbone it is; 0 leaves it alone.
        deviation: standard deviation of the factors.
        random: source of the factors, on the CPU.
    """

    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        factors = 1 + deviation * torch.randn(output.shape[1], generator=random)
        return output * factors.to(output)[:, None, None]

    with ExitStack() as hooks:
        if deviation:
            for module in detector.backbone.modules():
                if isinstance(module, nn.Conv2d):
                    hooks.callback(module.register_forward_hook(scale).remove)
        yield
