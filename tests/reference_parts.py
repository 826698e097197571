"""What the tests of gradient methods share: a pass over one picture, and its gradients the slow way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from builders import LABELS, random_image, random_model
from slow_reference import all_outputs_of, full_levels, held, outputs_of, region_outputs_of, scalar_of
from whybox.detectors.base import Forward
from whybox.detectors.torchvision import TorchvisionDetector, wrap


@contextmanager
def double_precision() -> Iterator[None]:
    """Rounding must not hide a wrong gradient."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Seen:
    """A detector with random weights, and its pass over one picture."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.model = random_model(architecture)
        self.detector: TorchvisionDetector = wrap(self.model, LABELS, background=True)
        # Padded to 96 x 128: the last row and column of the finest level lie on the padding.
        ((_, batch),) = self.detector.prepare([random_image(90, 118)])
        self.forward: Forward = self.detector.forward(batch, keep=True)

    def gradients(
        self,
        layer: str,
        candidate: int,
        label: int,
        level: int,
        targets: Sequence[tuple[str, str]],
        *,
        exact: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """The layer's whole map (C, H, W) and each target's gradient by it, one backward pass per scalar.

        Args:
            layer: name.
            candidate: position among the detector's candidates.
            label: that it is explained for.
            level: of the pyramid, where the layer is ``level``.
            targets: each with its ``score`` or ``logit``.
            exact: the statistics of a GroupNorm are not held.
        """
        dense = hasattr(self.model, "head")
        model, norms = held(self.model) if dense and not exact else (self.model, [])
        pixels = self.forward.batch.pixels
        proposals = self.forward.extra.get("proposals", [None])[0]
        if norms:
            outputs_of(model, pixels, OrderedDict(self.forward.levels), proposals)  # records the statistics
        for norm in norms:
            norm.recording = False
        if layer == "roi":
            proposals = proposals[candidate : candidate + 1]
            candidate = 0
            size = (pixels.shape[2], pixels.shape[3])
            leaf = model.roi_heads.box_roi_pool(self.forward.levels, [proposals], [size]).requires_grad_()
            scores, boxes, logits = region_outputs_of(model, leaf, proposals)
        else:
            levels = OrderedDict(self.forward.levels)
            if layer == "level":
                name = list(levels)[level]
                leaf = levels[name].clone().requires_grad_()
                levels[name] = leaf
            else:
                leaf = self.forward.stages[layer].clone().requires_grad_()
                levels = full_levels(model, self.forward.stages, layer, leaf)
            scores, boxes, logits = all_outputs_of(model, pixels, levels, proposals)
            if dense:
                scores, logits = scores[:, 1:], logits[:, 1:]
        gradients = []
        for target, score in targets:
            values = logits if score == "logit" else scores
            value = scalar_of(target.replace("class:gamma", "class#2"), values, boxes, candidate, label)
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, materialize_grads=True)
            gradients.append(gradient[0])
        return leaf.detach()[0], gradients
