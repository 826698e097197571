"""Attention: what a query-based detector's transformer attends to, as its weights say."""

from __future__ import annotations

from torch import Tensor

from whybox.detectors.base import Attention as Attended
from whybox.detectors.base import Detector, WhiteBoxDetector
from whybox.methods.base import Map, Method, Param, Question
from whybox.methods.layer_maps import place_whole
from whybox.methods.placing import Room
from whybox_proto.errors import ContractError

LAST, MEAN = -1, 0


class Attention(Method):
    """The attention weights of one detection, a mean over heads or one of them.

    ``decoder``: how much the detection's query takes from each cell of the encoder's memory. ``encoder``: how
    much the cell at the middle of the detection's box takes from every other. The weights of a map sum to 1,
    where attention looks at all cells; points that it samples beyond the picture are missing.

    Attention says from where values are taken, not what they do: neither the target nor the sign of their
    effect is known, and what residual connections carry past it is not shown.

    Source: Carion et al., "End-to-end object detection with transformers", ECCV 2020, figures 3 and 6; for
    sampled points Zhu et al., "Deformable DETR", ICLR 2021, figure 5.
    """

    name = "attention"
    description = (
        "Attention weights of a query-based detector: what a detection's query, or the middle of its box, "
        "attends to"
    )
    params = (
        Param(
            "block",
            LAST,
            "of the decoder or encoder, counted from 1; -1 is the last one, 0 the mean over all",
            minimum=LAST,
        ),
        Param("head", MEAN, "counted from 1; 0 is the mean over all", minimum=MEAN),
    )

    def layers(self, detector: Detector) -> list[str] | None:
        """Name the parts of the transformer that can tell; None for a detector without attention."""
        return list(detector.attends) or None if isinstance(detector, WhiteBoxDetector) else None

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        candidates = question.detections.candidates
        frame = question.forward.batch.frames[question.image]
        question.patience.check()
        seen = detector.attention(question.forward, question.image, question.layer, candidates)
        maps = self._chosen(seen, int(question.params["block"]), int(question.params["head"]))
        rows, room = [], Room(question.memory)
        for pick, values in enumerate(maps):
            (made,) = place_whole(values[None], pick, seen, frame)
            room.take(made.values.numel())
            rows.append([made] * len(question.targets))
        return rows

    def _chosen(self, seen: Attended, block: int, head: int) -> Tensor:
        """Take or average blocks and heads: float (N, h, w)."""
        weights = seen.weights
        for axis, name, number in ((1, "block", block), (2, "head", head)):
            count = weights.shape[axis]
            if number > count:
                raise ContractError(
                    "invalid_argument",
                    f"there is no such {name}",
                    field=f"params.{name}",
                    expected=f"at most {count}",
                    got=str(number),
                )
            if number == MEAN:
                weights = weights.mean(axis, keepdim=True)
            else:
                weights = weights.narrow(axis, count - 1 if number == LAST else number - 1, 1)
        return weights[:, 0, 0]
