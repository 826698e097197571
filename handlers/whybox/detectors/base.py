"""The Detector contract: what every explanation method needs from any detector, and no more.

Two uses, kept apart. *Black box*: `Detector.detect` alone, pictures in and detections out. *White box*:
`WhiteBoxDetector` adds the steps between (`prepare`, `forward`, `candidates`, `postprocess`) and `tap`,
the differentiable outputs of chosen candidates as a function of one layer's feature maps.

It fits three kinds of detector:

============  ==========================  =======================  ==========================
kind          a candidate is              its outputs depend on    layers to tap
============  ==========================  =======================  ==========================
one-stage     an anchor of a level        a window of that level   its level; backbone stages
two-stage     a proposal                  its region features      region; level; stages
query-based   a query                     the whole feature map    stages; encoder memory
============  ==========================  =======================  ==========================

Frames: *image*, pixels of the upright picture; *network*, pixels of the resized, normalised picture that
the network sees, before padding. Boxes are [x1, y1, x2, y2], continuous, origin top-left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Where one picture sits in the network's input: the resizing and its inverse.

    Attributes:
        width, height: of the upright picture, in pixels.
        network_width, network_height: after resizing, before padding.
    """

    width: int
    height: int
    network_width: int
    network_height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels per image pixel, (x, y)."""
        return self.network_width / self.width, self.network_height / self.height

    def to_image(self, boxes: Tensor) -> Tensor:
        """Map boxes (..., 4) from the network frame to the image frame; inverse of `to_network`."""
        return boxes / boxes.new_tensor(self.scale * 2)

    def to_network(self, boxes: Tensor) -> Tensor:
        """Map boxes (..., 4) from the image frame to the network frame; inverse of `to_image`."""
        return boxes * boxes.new_tensor(self.scale * 2)


@dataclass(frozen=True)
class Batch:
    """Preprocessed pictures that share one forward pass.

    Attributes:
        pixels: float (B, 3, H, W), normalised, padded at the right and bottom with zeros.
        frames: one for each picture.
    """

    pixels: Tensor
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Detections:
    """What the detector answers for one picture, best score first.

    Attributes:
        boxes: float (N, 4), image frame.
        labels: int64 (N,), positions in `Detector.labels`.
        scores: float (N,).
        class_scores: float (N, K), the final score of every class for the same candidate.
        candidates: int64 (N,), positions in `Candidates`; -1 where the detector is a black box.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_scores: Tensor
    candidates: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device) -> Detections:
        """Move to a device."""
        return Detections(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def __getitem__(self, keep: Tensor | slice) -> Detections:
        """Keep some of them, by indices, mask or slice."""
        return Detections(
            self.boxes[keep],
            self.labels[keep],
            self.scores[keep],
            self.class_scores[keep],
            self.candidates[keep],
        )


@dataclass(frozen=True)
class Candidates:
    """All that a network proposes for one picture, before post-processing.

    Attributes:
        boxes: float (N, 4), or (N, K, 4) where the box depends on the class; network frame, not clipped.
        scores: float (N, K), final class scores, background left out.
        groups: int64 (N,): the limit on candidates before NMS applies within each group (pyramid level).
    """

    boxes: Tensor
    scores: Tensor
    groups: Tensor


@dataclass(frozen=True)
class PostProcessing:
    """How candidates become detections.

    Attributes:
        score_threshold: candidates must score above it.
        max_detections: most detections kept, best first.
        nms: ``iou`` (greedy, within a class) or ``none``.
        iou_threshold: of the suppression; a box with a higher IoU to a better one is dropped.
    """

    score_threshold: float
    max_detections: int
    nms: str = "iou"
    iou_threshold: float = 0.5


@dataclass(frozen=True)
class Layer:
    """A layer whose feature maps can be tapped.

    Attributes:
        name: as asked for, such as ``level``, ``roi`` or ``layer2``.
        kind: ``level`` (the pyramid level that produced the candidate), ``roi`` (its region features) or
            ``stage`` (a stage of the backbone, seen through the whole network above it).
        channels: C of its maps.
        stride: network pixels per cell; None where it depends on the object.
    """

    name: str
    kind: str
    channels: int
    stride: float | None = None


@dataclass(frozen=True)
class Outputs:
    """The outputs of N candidates, differentiable.

    Attributes:
        scores: float (N, K), final class scores.
        sides: float (N, 4), the decoded box in the network frame, not clipped to the picture.
        labels: int64 (N,), the class each candidate was chosen for.
    """

    scores: Tensor
    sides: Tensor
    labels: Tensor


Target = Callable[[Outputs], Tensor]
"""A scalar of every candidate: (N,) from its outputs. Candidates must not mix."""


@dataclass(frozen=True)
class Window:
    """Activations and gradients of one layer around some of the chosen candidates.

    Attributes:
        picks: int64 (n,), positions among the N chosen candidates.
        activations: float (n, C, h, w), zero outside the layer's grid.
        gradients: float (n, T, C, h, w), of each target by the activations; zero outside the grid.
        origins: int64 (n, 2), column and row of the window's first cell on the layer's grid; may be negative.
    """

    picks: Tensor
    activations: Tensor
    gradients: Tensor
    origins: Tensor


@dataclass(frozen=True)
class Grids:
    """The grids that the cells of N taps lie on.

    Attributes:
        offsets: float (N, 2), network frame: x, y of the top-left corner of cell (0, 0).
        cells: float (N, 2): width, height of a cell in network pixels.
        sizes: int64 (N, 2): columns, rows that lie on the picture (padding left out).
    """

    offsets: Tensor
    cells: Tensor
    sizes: Tensor


class Tap(ABC):
    """One layer, seen from N chosen candidates of one picture.

    Attributes:
        grids: where the layer's cells lie, for each candidate.
        boxes: float (N, 4), the candidates' boxes, network frame.
    """

    grids: Grids
    boxes: Tensor

    @abstractmethod
    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """Yield activations and exact gradients, a part of the candidates at a time.

        A window holds every cell at which a gradient can be other than zero, and `margin` cells more on
        each side unless it holds the whole grid anyway. Memory is bounded by the chunk, not by N.
        """


@dataclass
class Forward:
    """What one forward pass left behind, for the taps; each family adds to it.

    Attributes:
        batch: what went in.
        stages: name → float (B, C, H, W), the backbone's stages, in order.
        levels: name → float (B, C, H, W), the pyramid's levels, finest first.
        extra: what the family needs besides.
    """

    batch: Batch
    stages: dict[str, Tensor]
    levels: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


class Detector(ABC):
    """A detector as a black box.

    Attributes:
        labels: the classes' names; `label_id` is a position in it.
        defaults: the post-processing that the model came with.
    """

    labels: tuple[str, ...]
    defaults: PostProcessing

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its weights are."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move to a device; returns itself."""

    @abstractmethod
    def detect(self, images: Sequence[Tensor], settings: PostProcessing | None = None) -> list[Detections]:
        """Find objects.

        Args:
            images: uint8 (H, W, 3), RGB, upright; sizes may differ.
            settings: post-processing; the model's own by default.
        """


class WhiteBoxDetector(Detector):
    """A detector that can be looked into.

    Attributes:
        layers: the layers that can be tapped, by name.
    """

    layers: Mapping[str, Layer]

    @abstractmethod
    def prepare(self, images: Sequence[Tensor]) -> list[tuple[list[int], Batch]]:
        """Resize, normalise and batch pictures.

        Pictures share a batch only where their padded sizes agree, so that no answer depends on a neighbour.

        Args:
            images: uint8 (H, W, 3), RGB, upright; sizes may differ.

        Returns:
            Batches, each with the positions of its pictures in `images`.
        """

    @abstractmethod
    def forward(self, batch: Batch, *, keep: bool = False) -> Forward:
        """Run the network without gradients.

        Args:
            batch: from `prepare`.
            keep: also keep what `tap` needs.
        """

    @abstractmethod
    def candidates(self, forward: Forward, image: int) -> Candidates:
        """Return all that the network proposes for one picture of the batch."""

    @abstractmethod
    def postprocess(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Detections:
        """Turn candidates into detections."""

    @abstractmethod
    def tap(self, forward: Forward, image: int, layer: str, candidates: Tensor, labels: Tensor) -> Tap:
        """Tap a layer for chosen candidates of one picture.

        Args:
            forward: a pass made with ``keep=True``.
            image: position in the batch.
            layer: name in `layers`.
            candidates: int64 (N,), positions in `Candidates`.
            labels: int64 (N,), the class each was chosen for.

        Raises:
            ValueError: if there is no such layer, or the pass was made without ``keep``.
        """

    def detect(self, images: Sequence[Tensor], settings: PostProcessing | None = None) -> list[Detections]:
        """Find objects; see `Detector.detect`."""
        found: dict[int, Detections] = {}
        for positions, batch in self.prepare(images):
            forward = self.forward(batch)
            for image, position in enumerate(positions):
                found[position] = self.postprocess(
                    self.candidates(forward, image), batch.frames[image], settings or self.defaults
                )
        return [found[position] for position in range(len(images))]


def group_by_shape(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return the positions that share a shape, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(position)
    return list(groups.values())


def require_images(images: Sequence[Tensor]) -> None:
    """Check that pictures are uint8 (H, W, 3).

    Raises:
        ValueError: naming the first that is not.
    """
    for position, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8 or not image.numel():
            raise ValueError(
                f"images[{position}]: expected uint8 (H, W, 3); got {image.dtype} {tuple(image.shape)}"
            )
