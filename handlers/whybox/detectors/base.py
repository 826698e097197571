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
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from whybox.detectors.stage_outputs import StageOutputs
from whybox.gaussian import smooth, smoothing_margin
from whybox.nms import Correlate, Verdict, suppress


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

    def copies(self, image: int, count: int) -> Batch:
        """Return a batch of so many copies of one of the pictures; they share memory."""
        pixels = self.pixels[image : image + 1].expand(count, -1, -1, -1)
        return Batch(pixels, (self.frames[image],) * count)


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

    def boxes_of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the boxes of (candidate, class) pairs, int64 (n,) each: float (n, 4)."""
        return self.boxes[rows, labels] if self.boxes.ndim == 3 else self.boxes[rows]


@dataclass(frozen=True)
class Contenders:
    """The (candidate, class) pairs of one picture that enter the suppression of duplicates.

    Attributes:
        boxes: float (N, 4), network frame, clipped to the picture unless `trim`.
        labels: int64 (N,).
        scores: float (N,).
        candidates: int64 (N,), positions in `Candidates`.
        trim: what the suppression leaves is clipped to the picture afterwards, and boxes of which nothing is
            left then are dropped.
        best_class_only: each candidate enters as its best class alone.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    candidates: Tensor
    trim: bool = False
    best_class_only: bool = False

    def shown(self, rows: Tensor, frame: Frame) -> Tensor:
        """Return the boxes at some positions, int64 (n,), as answers have them: float (n, 4), image frame."""
        boxes = self.boxes[rows]
        if self.trim:
            boxes = clip_boxes_to_image(boxes, (frame.network_height, frame.network_width))
        return frame.to_image(boxes)


@dataclass(frozen=True)
class PostProcessing:
    """How candidates become detections.

    Attributes:
        score_threshold: candidates must score above it to enter the suppression of duplicates.
        max_detections: most detections kept, best first.
        nms: ``iou`` (greedy), ``soft``, ``odam`` or ``none``, within a class each; see `whybox.nms`.
        iou_threshold: of ``iou`` and ``odam``: boxes of a higher IoU overlap.
        sigma: of ``soft``: scores fall by exp(-IoU² / sigma).
        final_threshold: of ``soft``: boxes whose score falls below it go.
        corr_high: of ``odam``: boxes that do not overlap are the same if their maps correlate more.
        corr_low: of ``odam``: boxes that overlap are the same if their maps correlate more.
    """

    score_threshold: float
    max_detections: int
    nms: str = "iou"
    iou_threshold: float = 0.5
    sigma: float = 0.5
    final_threshold: float = 0.05
    corr_high: float = 0.95
    corr_low: float = 0.05


@dataclass(frozen=True)
class Layer:
    """A layer whose feature maps can be tapped.

    Attributes:
        name: as asked for, such as ``level``, ``roi`` or ``layer2``.
        kind: ``level`` (the pyramid level that produced the candidate), ``roi`` (its region features),
            ``stage`` (a stage of the backbone, seen through the whole network above it) or ``memory`` (what a
            transformer's encoder hands to its decoder).
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
        logits: float (N, K), what the head says of each class before sigmoid or softmax.
    """

    scores: Tensor
    sides: Tensor
    labels: Tensor
    logits: Tensor


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

    def heat(self, sigmas: Tensor | None) -> Heat:
        """Weigh the activations with the smoothed gradients; see `Tap.heat`."""
        gradients = self.gradients if sigmas is None else smooth(self.gradients, sigmas[self.picks])
        return Heat(self.picks, (gradients * self.activations[:, None]).sum(2), self.origins)


@dataclass(frozen=True)
class Heat:
    """Activations weighted by gradients, summed over the channels, of some of the chosen candidates.

    Attributes:
        picks: int64 (n,), positions among the N chosen candidates.
        values: float (n, T, h, w): Σ_k Φ(∂Y/∂A_k) ∘ A_k for each target Y; negative values occur.
        origins: int64 (n, 2), column and row of the first cell on the layer's grid; may be negative, and the
            maps may reach beyond the grid, where they are zero.
    """

    picks: Tensor
    values: Tensor
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

    def __getitem__(self, keep: Tensor) -> Grids:
        """Keep those of some taps."""
        return Grids(self.offsets[keep], self.cells[keep], self.sizes[keep])


class Tap(ABC):
    """One layer, seen from N chosen candidates of one picture.

    Attributes:
        grids: where the layer's cells lie, for each candidate.
        boxes: float (N, 4), the candidates' boxes, network frame.
        candidate_levels: int64 (N,), the level that each candidate was found on; of taps of kind ``level``
            and of what they lead to.
    """

    grids: Grids
    boxes: Tensor
    candidate_levels: Tensor

    @abstractmethod
    def windows(self, targets: Sequence[Target], *, margin: int = 0) -> Iterator[Window]:
        """Yield activations and exact gradients, a part of the candidates at a time.

        A window holds every cell at which a gradient can be other than zero, and `margin` cells more on
        each side unless it holds the whole grid anyway. Memory is bounded by the chunk, not by N.
        """

    @abstractmethod
    def whole(self, pick: int) -> Tensor:
        """Return the whole map that one of the candidates belongs to: float (C, H, W), padding included."""

    def heat(self, targets: Sequence[Target], sigmas: Tensor | None = None) -> Iterator[Heat]:
        """Yield Σ_k Φ(∂Y/∂A_k) ∘ A_k, a part of the candidates at a time.

        A tap overrides this where it knows a cheaper way than through `windows`.

        Args:
            targets: T scalars Y of each candidate.
            sigmas: float (N, 2): σ of the Gaussian Φ along x and y, in cells of the layer; None for no Φ.
        """
        for window in self.windows(targets, margin=smoothing_margin(sigmas)):
            yield window.heat(sigmas)


@dataclass(frozen=True)
class Taps:
    """Several layers, seen from the same candidates of one picture.

    A family overrides `heat` where its layers share work.

    Attributes:
        taps: one for each layer, in the order asked.
    """

    taps: Sequence[Tap]

    def heat(self, targets: Sequence[Target], sigmas: Sequence[Tensor | None]) -> Iterator[tuple[int, Heat]]:
        """Yield the heat of every layer, with the layer's position; see `Tap.heat`.

        Args:
            targets: T scalars of each candidate.
            sigmas: for each layer, as in `Tap.heat`.
        """
        for position, (tap, sigma) in enumerate(zip(self.taps, sigmas, strict=True)):
            for heat in tap.heat(targets, sigma):
                yield position, heat


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


@dataclass(frozen=True)
class Attention:
    """What a transformer attends to for each of N candidates of one picture.

    Attributes:
        weights: float (N, B, H, h, w), of each of B blocks and H heads; 0 or more, and 1 at most in all cells
            of one.
        grids: where the cells lie, for each candidate.
    """

    weights: Tensor
    grids: Grids


@dataclass(frozen=True)
class Trace:
    """A pass over versions of one picture that remembers the way from their pixels to the pyramid's levels.

    Attributes:
        forward: the pass without its graph; where there are `levels`, made as with ``keep=True``, for the
            taps of kind ``level``.
        pixels: float (B, 3, H, W), the leaf to differentiate by.
        levels: float (B, C, H, W) each, with the graph; in the order of the tap's `candidate_levels`. Empty
            for a detector without.
        outputs: for a detector without levels: a version's position, candidates int64 (N,) and labels (N,) →
            their outputs, with the graph.
    """

    forward: Forward
    pixels: Tensor
    levels: Sequence[Tensor]
    outputs: Callable[[int, Tensor, Tensor], Outputs] | None = None


class Detector(ABC):
    """A detector as a black box.

    Attributes:
        labels: the classes' names; `label_id` is a position in it.
        defaults: the post-processing that the model came with.
        max_aspect: the longer side over the shorter one of the thinnest pictures of which something is left
            when they are scaled; None where all pictures can be taken.
    """

    labels: tuple[str, ...]
    defaults: PostProcessing
    max_aspect: int | None = None

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
        traces: it can be differentiated down to its pixels: it has `trace`.
        dense: a dense head says of each class, at every cell of its levels: it has `class_maps`.
        stages: what `stage_outputs` returns, in order: ``dense``, ``rpn`` and ``roi``, or ``queries``; empty
            for a detector that cannot be inverted.
        masks: it has a mask for each detection, and `stage_outputs` says them.
        attends: what `attention` can tell of: ``decoder`` and ``encoder``; empty for a detector without.
    """

    layers: Mapping[str, Layer]
    traces: bool = False
    dense: bool = False
    stages: tuple[str, ...] = ()
    masks: bool = False
    attends: tuple[str, ...] = ()

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
    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """Choose the candidates that enter the suppression of duplicates: thresholds and limits before it."""

    def postprocess(
        self,
        candidates: Candidates,
        frame: Frame,
        settings: PostProcessing,
        correlate: Correlate | None = None,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> Detections:
        """Turn candidates into detections.

        Args:
            candidates: of one picture.
            frame: where the picture sits in the network's input.
            settings: thresholds, limits and the suppression of duplicates.
            correlate: of the contenders' heat maps, for Odam-NMS; see `whybox.finding`.
            between: called between parts of Soft-NMS; may raise to stop it.

        Raises:
            ValueError: if the settings ask for Odam-NMS and there are no correlations.
        """
        found = self.contenders(candidates, frame, settings)
        verdict = suppress(
            found.boxes, found.scores, found.labels, settings, correlate=correlate, between=between
        )
        return detections_of(candidates, found, verdict, frame, settings)

    def detections(
        self,
        forward: Forward,
        image: int,
        settings: PostProcessing,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> Detections:
        """Return the detections of one picture of a pass: `postprocess` of its `candidates`.

        A family overrides this where it can leave most candidates out.
        """
        frame = forward.batch.frames[image]
        return self.postprocess(self.candidates(forward, image), frame, settings, between=between)

    @abstractmethod
    def tap(
        self,
        forward: Forward,
        image: int,
        layer: str,
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> Tap:
        """Tap a layer for chosen candidates of one picture.

        Args:
            forward: a pass made with ``keep=True``.
            image: position in the batch.
            layer: name in `layers`.
            candidates: int64 (N,), positions in `Candidates`.
            labels: int64 (N,), the class each was chosen for.
            exact: where a head has norms whose statistics span a whole feature map (GroupNorm), differentiate
                through the statistics too. By default they are held at their true values, so that the
                gradient stays local to the candidate; for heads without them both are the same.

        Raises:
            ValueError: if there is no such layer, or the pass was made without ``keep``.
        """

    def taps(
        self,
        forward: Forward,
        image: int,
        layers: Sequence[str],
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> Taps:
        """Tap several layers for the same candidates; see `tap`."""
        return Taps([self.tap(forward, image, layer, candidates, labels, exact=exact) for layer in layers])

    def hold(self, forward: Forward, image: int, candidates: Tensor) -> dict[str, Tensor]:
        """Return what `trace` must know to have the same candidates again on another version of a picture.

        Args:
            forward: of the picture itself.
            image: position in the batch.
            candidates: int64 (N,), positions in `Candidates`.

        Returns:
            ``candidates``, int64 (N,): where to find them in the pass of `trace`; and, by names of the
            family's own, what it holds fixed besides, such as ``proposals``.
        """
        del forward, image
        return {"candidates": candidates}

    def trace(self, batch: Batch, held: Mapping[str, Tensor]) -> Trace:
        """Run the network and keep the graph from the pixels to the pyramid's levels.

        Args:
            batch: versions of one picture; its pixels need not require a gradient.
            held: from `hold`, to have the candidates of that pass; empty for the network's own.

        Raises:
            NotImplementedError: if the detector cannot; see `traces`.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no graph down to its pixels")

    @property
    def backbone(self) -> nn.Module:
        """The network below its heads, for hooks that are taken off again.

        Raises:
            NotImplementedError: if the detector cannot be inverted; see `stages`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be inverted")

    def embed(self, picture: Tensor) -> Batch:
        """Prepare a picture that is still being made, as `prepare` does, differentiably.

        Args:
            picture: float (3, H, W), RGB, 0 to 1.

        Returns:
            A batch of one.

        Raises:
            NotImplementedError: if the detector cannot be inverted; see `stages`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be inverted")

    def stage_outputs(self, batch: Batch, regions: Tensor | None = None) -> list[StageOutputs]:
        """Run the network and keep the graph from its input to all that it says.

        Args:
            batch: of one picture, from `embed`.
            regions: float (N, 4), network frame: take these, not its own, as the proposals of a two-stage
                detector.

        Returns:
            For each of `stages`.

        Raises:
            NotImplementedError: if the detector cannot be inverted; see `stages`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be inverted")

    def class_maps(self, forward: Forward, image: int, *, score: bool = False) -> list[Tensor]:
        """Lay the class outputs of a dense head out on the levels.

        Args:
            forward: a pass.
            image: position in the batch.
            score: the final scores instead of what the head says before sigmoid or softmax.

        Returns:
            For each level float (A, K, H, W), A anchors of a cell; candidate i is anchor i % A of its cell.

        Raises:
            NotImplementedError: if the detector has no such head; see `dense`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no dense head over its levels")

    def attention(self, forward: Forward, image: int, part: str, candidates: Tensor) -> Attention:
        """Say what a transformer attends to.

        Args:
            forward: a pass made with ``keep=True``.
            image: position in the batch.
            part: of `attends`: ``decoder``, to the memory from a candidate's query; ``encoder``, to all cells
                from that at the middle of its box.
            candidates: int64 (N,), positions in `Candidates`.

        Raises:
            NotImplementedError: if the detector has no such attention; see `attends`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention to show")

    @abstractmethod
    def resume(self, forward: Forward, image: int, layer: str, maps: Sequence[Tensor]) -> Forward:
        """Run the network on from a layer whose feature maps are changed, without gradients.

        Maps that are those of `forward` give its outputs.

        Args:
            forward: a pass made with ``keep=True``.
            image: position in the batch.
            layer: a stage of the backbone, or ``level`` for all levels of the pyramid at once.
            maps: float (M, C, H, W), M versions of the stage's map, or of each level's, finest first.

        Returns:
            A pass over M pictures, without what `tap` needs.

        Raises:
            ValueError: if the layer is neither, the pass was made without ``keep``, or the maps have not the
                layer's shape.
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


def detections_of(
    candidates: Candidates, found: Contenders, verdict: Verdict, frame: Frame, settings: PostProcessing
) -> Detections:
    """Return the contenders that stay, the best `max_detections` of them, in the image frame."""
    keep = verdict.kept[: settings.max_detections]
    detections = Detections(
        boxes=found.shown(keep, frame),
        labels=found.labels[keep],
        scores=verdict.scores[: settings.max_detections],
        class_scores=candidates.scores[found.candidates[keep]],
        candidates=found.candidates[keep],
    )
    if not found.trim:
        return detections
    return detections[(detections.boxes[:, 2:] > detections.boxes[:, :2]).all(1)]


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
