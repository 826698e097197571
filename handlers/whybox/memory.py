"""How much memory passes through a network take, and so how many pictures fit a batch.

The bytes are counted, not looked up: every tensor that is made while one picture goes through the network is
followed until it is let go. The count depends on the network alone, never on what else the machine does: so
every worker cuts its work in the same way.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whybox.detectors.base import Batch, Frame, WhiteBoxDetector

SIDE = 384
"""Of the picture that is sent through the network to count, in network pixels."""

SLACK = 1.25
"""What is counted is taken this many times: convolutions have work space, and allocators gaps."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that work on one picture takes at its peak, beside the weights.

    Attributes:
        peak: for a picture of `SIDE` x `SIDE`.
    """

    peak: int

    def bytes(self, pixels: int) -> float:
        """Return the bytes for a picture of so many network pixels.

        Part of the peak grows with the picture and part (regions, for instance) does not. Taken all as
        growing beyond the picture that was counted, and none below it, the result is an upper bound.
        """
        return SLACK * self.peak * max(1.0, pixels / SIDE**2)

    def pictures(self, pixels: int, memory: int) -> int:
        """Return how many pictures fit a batch; one at least, since less cannot be done.

        Args:
            pixels: of the network's input for each of them, padding included.
            memory: bytes that the batch may take.
        """
        return max(1, int(memory // self.bytes(pixels)))


def forward_footprint(detector: WhiteBoxDetector) -> Footprint:
    """Count what a forward pass takes: `WhiteBoxDetector.forward` with ``keep=False``.

    The first call for a detector runs it on a small picture; later ones remember.
    """
    return _remembered(detector, "forward", lambda batch: detector.forward(batch))


def gradient_footprint(detector: WhiteBoxDetector) -> Footprint:
    """Count what a forward pass that keeps its graph, and a backward pass to the pixels, take.

    It is of all levels of the pyramid at once, under a head that was run with ``keep=True``, or of all
    outputs where there are no levels. The first call for a detector runs it on a small picture; later ones
    remember.
    """

    def work(batch: Batch) -> None:
        trace = detector.trace(batch, {})
        tops = list(trace.levels)
        if trace.outputs is not None:
            every = torch.arange(len(detector.candidates(trace.forward, 0).scores), device=detector.device)
            tops = [trace.outputs(0, every, torch.zeros_like(every)).sides]
        torch.autograd.grad(tops, trace.pixels, [torch.ones_like(top) for top in tops])

    return _remembered(detector, "gradient", work)


_FOOTPRINTS: weakref.WeakKeyDictionary[WhiteBoxDetector, dict[str, Footprint]] = weakref.WeakKeyDictionary()


def _remembered(detector: WhiteBoxDetector, what: str, work: Callable[[Batch], object]) -> Footprint:
    known = _FOOTPRINTS.setdefault(detector, {})
    if what not in known:
        # Noise: in a blank picture a network with proposals may have none.
        pixels = torch.randn((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
        batch = Batch(pixels.to(detector.device), (Frame(SIDE, SIDE, SIDE, SIDE),))
        known[what] = Footprint(peak(lambda: work(batch)))
    return known[what]


def peak(work: Callable[[], object]) -> int:
    """Run some work and return the most bytes of tensors made by it that were alive at once."""
    counter = _Counter()
    # Cycles that hold tensors would otherwise be collected at moments that differ from run to run.
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with counter:
            work()
    finally:
        if collecting:
            gc.enable()
    return counter.most


class _Counter(TorchDispatchMode):
    """Follows the storages of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        del types
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs or {}))
            if isinstance(leaf, Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._follow(leaf, given)
        return made

    def _follow(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or key in given:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._let_go, key).atexit = False

    def _let_go(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)
