"""D-RISE: hide random parts of the picture, or of a feature map, and see which detections remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whybox.detectors.base import Detections, Detector, WhiteBoxDetector
from whybox.matching import similarities
from whybox.methods.base import Param, Question
from whybox.methods.perturbing import (
    IMAGE,
    Perturbed,
    batches,
    by_detection,
    fill_param,
    group_count,
    round_size,
    settings_of,
    threshold_param,
)
from whybox.methods.sampling import SamplingMethod, SamplingPlan, Sum, Task, generator, raster

CELLS_ACROSS = 8
"""Cells of the map for each cell of a mask: its values bend at the centres of a mask's cells only."""


ROUNDS = 10
"""At least, for a standard error from their scatter, unless they would fall below `MIN_ROUND` samples."""

MIN_ROUND = 8
"""Samples of a round: the fewer there are, the less centring takes from the noise."""


@dataclass(frozen=True)
class RandomMasks:
    """B masks of random cells, bilinear between the cells' centres, each shifted by a random part of a cell.

    A grid of (n, n) cells is laid over (n + 1)/n of the picture's width and height, and shifted by up to one
    cell. Beyond the centres of its outermost cells a mask goes on as it is there.

    Source: Petsiuk et al., "RISE: Randomized input sampling for explanation of black-box models", BMVC 2018,
    section 3.2.

    Attributes:
        cells: float (B, n, n), 1 where the picture is kept.
        shifts: float (B, 2), along x and y, in cells, 0 to 1.
        width, height: of the picture, in pixels.
    """

    cells: Tensor
    shifts: Tensor
    width: int
    height: int

    @classmethod
    def draw(
        cls, seed: int, samples: Sequence[int], cells: int, probability: float, size: tuple[int, int]
    ) -> RandomMasks:
        """Draw the masks of some samples, each from the seed and its own number.

        Args:
            seed: of all masks.
            samples: their numbers.
            cells: n, along each side.
            probability: that a cell is kept.
            size: width and height of the picture, in pixels.
        """
        drawn = []
        for sample in samples:
            source = generator(seed, sample)
            drawn.append(torch.rand(cells * cells + 2, generator=source))
        numbers = torch.stack(drawn)  # [B, n² + 2]
        kept = (numbers[:, :-2] < probability).float().view(-1, cells, cells)
        return cls(kept, numbers[:, -2:], *size)

    def to(self, device: torch.device) -> RandomMasks:
        """Move to a device."""
        return replace(self, cells=self.cells.to(device), shifts=self.shifts.to(device))

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the share that is kept; see `whybox.methods.perturbing.Masks`."""
        columns = self._weights(x / self.width, self.shifts[:, 0])  # [B, w, n]
        rows = self._weights(y / self.height, self.shifts[:, 1])  # [B, h, n]
        return rows @ self.cells.to(x) @ columns.transpose(1, 2)

    def _weights(self, places: Tensor, shifts: Tensor) -> Tensor:
        """Weights of the cells at places (p,), which are shares of a side: float (B, p, n), rows sum to 1."""
        n = self.cells.shape[1]
        at = places * n + shifts.to(places)[:, None]  # in cells of the shifted grid, (n + 1) of them wide
        at = (at * (n / (n + 1)) - 0.5).clamp(0, n - 1)  # 0 is the centre of the first cell
        return (1 - (at[..., None] - torch.arange(n, device=at.device)).abs()).clamp(min=0)


class DRise(SamplingMethod):
    """The mean of random masks, each weighted by how alike a detection of the masked picture is.

    For N masks M_i whose cells are kept with probability p, H = Σ_i s_i M_i / (N·p), where s_i is the largest
    similarity of any detection of the masked picture to the one explained (`whybox.matching.similarities`).
    It needs nothing of the detector but its answers. Its values are similarities: H at a place is about the
    mean similarity where the place is kept, so a map's contrast, not its level, tells what matters.

    On a layer of the detector instead of ``image``, the features are hidden and not the pixels: the map then
    shows where the detector *keeps* what decides, which need not be where it is seen.

    Much of the noise of that sum comes from the masks alone: where the similarity does not depend on a place,
    H still scatters with the share of masks that happened to keep it. By default each similarity is therefore
    taken from the mean c_i of the other samples of its chunk, H = Σ_i [(s_i − c_i) M_i / p + c_i] / N. Since
    c_i has nothing to do with M_i, whose mean is p, the expectation is the same (a control variate). Where it
    is near 0, noise may take a value below: that is nothing against a detection, and the map is not signed.

    ``class`` compares with the detection's own class vector, ``class:LABEL`` with one that holds this class
    alone: what would make it a LABEL.

    Source: Petsiuk et al., "Black-box explanation of object detectors via saliency maps", CVPR 2021,
    section 3; on feature maps, `docs/methods/drise.md`.
    """

    name = "d_rise"
    description = (
        "D-RISE (Petsiuk et al., 2021): random masks over the picture or a feature map, weighted by how much "
        "of the detection remains"
    )
    params = (
        Param("samples", 1000, "masks, unless a budget says otherwise; the paper draws 5000", 1, 100_000),
        Param("cells", 16, "of a mask along each side", 2, 64),
        Param("probability", 0.5, "that a cell of a mask is kept", 0.05, 0.95),
        Param(
            "centred",
            True,
            "weigh a mask by how far its similarity is from the mean of others: the same map on average, and "
            "less noise; false for the paper's sum",
        ),
        fill_param("black"),
        threshold_param(),
    )

    def layers(self, detector: Detector) -> list[str] | None:
        """Name what can be hidden: the image, and every layer from which the network can be run on."""
        if not isinstance(detector, WhiteBoxDetector):
            return None
        return [
            IMAGE,
            *(layer.name for layer in detector.layers.values() if layer.kind in ("level", "stage")),
        ]

    def plan(self, detector: Detector, question: Question) -> SamplingPlan:
        """See `SamplingMethod.plan`."""
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        frame = question.forward.batch.frames[question.image]
        cells = self._raster(frame.width, frame.height, question)
        samples = int(question.params["samples"])
        a_tenth = -(-(samples if question.samples is None else question.samples) // ROUNDS)
        return SamplingPlan(
            samples=samples,
            round_samples=min(
                round_size(detector, question.forward.batch, question.layer), max(MIN_ROUND, a_tenth)
            ),
            cells=cells,
            groups=group_count(question, cells),
            state={},
        )

    def sample(self, detector: Detector, task: Task) -> list[list[Sum]]:
        """See `SamplingMethod.sample`."""
        assert isinstance(detector, WhiteBoxDetector)
        perturbed = Perturbed(
            detector,
            task.picture,
            layer=task.layer,
            fill=str(task.params["fill"]),
            settings=settings_of(detector, task),
        )
        height, width = task.picture.shape[:2]
        boxes, vectors = _targets(task.detections, task.targets, detector.labels)
        h, w = self._raster(width, height, task)
        x = (torch.arange(w, device=detector.device) + 0.5) * (width / w)
        y = (torch.arange(h, device=detector.device) + 0.5) * (height / h)
        weighted = boxes.new_zeros(len(boxes), h, w)  # Σ s M
        total = boxes.new_zeros(len(boxes), 1, 1)  # Σ s
        kept = boxes.new_zeros(h, w)  # Σ M
        cells, probability = int(task.params["cells"]), float(task.params["probability"])
        for numbers in batches(detector, perturbed.batch, task):
            task.patience.check()
            masks = RandomMasks.draw(task.seed, numbers, cells, probability, (width, height))
            masks = masks.to(detector.device)
            found = perturbed.found(masks, between=task.patience.check)
            alike = similarities(boxes, vectors, found)  # [M, N·T]
            seen = masks.at(x, y).to(alike)
            weighted += torch.einsum("mn,mhw->nhw", alike, seen)
            total += alike.sum(0)[:, None, None]
            kept += seen.sum(0)
        sums = weighted
        if task.params["centred"] and task.count > 1:
            n = task.count
            # s − c = n/(n − 1) (s − mean of all), and Σ c = Σ s.
            sums = n / (n - 1) * (weighted - total / n * kept) + probability * total
        region = (0.0, 0.0, float(width), float(height))
        made = [Sum(values.float(), task.count * probability, region) for values in sums]
        return by_detection(made, len(task.targets))

    def _raster(self, width: int, height: int, asked: Question | Task) -> tuple[int, int]:
        """Return the (h, w) of the maps."""
        return raster(width, height, min(asked.max_side, CELLS_ACROSS * int(asked.params["cells"])))


def _targets(detections: Detections, targets: Sequence[str], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the boxes (N·T, 4) and class vectors (N·T, K) to compare with, the targets innermost."""
    vectors = []
    for target in targets:
        _, _, label = target.partition(":")
        vector = detections.class_scores
        if label:
            vector = torch.zeros_like(vector)
            vector[:, list(labels).index(label)] = 1
        vectors.append(vector)
    return detections.boxes.repeat_interleave(len(targets), 0), torch.stack(vectors, 1).flatten(0, 1)
