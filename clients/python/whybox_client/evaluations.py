"""How good each map of an explanation is: what `Client.evaluate` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from whybox_client.floats import shortest
from whybox_client.images import Picture
from whybox_client.results import Detection, Explanation, HeatMap
from whybox_proto.v1 import explainer_pb2


@dataclass(frozen=True)
class Evaluation:
    """How good one map is.

    Attributes:
        heat_map: the map.
        values: by name of the measure; the model's description has each measure's protocol, and whether
            higher is better.
    """

    heat_map: HeatMap
    values: Mapping[str, float] = field(hash=False)

    @property
    def detection(self) -> Detection:
        """The prediction that the map explains."""
        return self.heat_map.detection

    @property
    def target(self) -> str:
        """What the map explains of it."""
        return self.heat_map.target

    def to_dict(self) -> dict[str, Any]:
        """Which map it is and its values, ready for JSON."""
        return {
            "detection_index": self.detection.index,
            "target": self.target,
            "values": dict(self.values),
        }


@dataclass(frozen=True)
class Evaluations(Sequence[Evaluation]):
    """An explanation and how good each of its maps is: a sequence with one `Evaluation` per map.

    Attributes:
        explanation: what was evaluated.
        items: the evaluations, in the order of the maps.
    """

    explanation: Explanation
    items: tuple[Evaluation, ...]

    @classmethod
    def from_message(
        cls, response: explainer_pb2.EvaluateResponse, source: Picture, request_id: str
    ) -> Evaluations:
        """Read an evaluation from the wire; `source` is the image that was sent."""
        explanation = Explanation.from_message(response.explanation, source, request_id)
        return cls(
            explanation,
            tuple(
                Evaluation(
                    _map_of(explanation, one),
                    {name: shortest(one.values[name]) for name in sorted(one.values)},
                )
                for one in response.evaluations
            ),
        )

    @overload
    def __getitem__(self, index: int) -> Evaluation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Evaluation]: ...
    def __getitem__(self, index: int | slice) -> Evaluation | Sequence[Evaluation]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of all measures that were taken."""
        return tuple(sorted({name for evaluation in self for name in evaluation.values}))

    def of(self, detection: int = 0, target: str = "class") -> Evaluation:
        """Return the evaluation of one map.

        Raises:
            KeyError: if there is none.
        """
        for evaluation in self:
            if (evaluation.detection.index, evaluation.target) == (detection, target):
                return evaluation
        raise KeyError(f"no map of {target!r} of detection {detection} was evaluated")

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each map, as ``pandas.DataFrame`` takes them: which map it is, and its values."""
        return [
            {
                "detection": evaluation.detection.index,
                "label": evaluation.detection.label,
                "score": evaluation.detection.score,
                "target": evaluation.target,
                **evaluation.values,
            }
            for evaluation in self
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but image and cells, ready for JSON."""
        return {
            "explanation": self.explanation.to_dict(),
            "evaluations": [evaluation.to_dict() for evaluation in self],
        }


def _map_of(explanation: Explanation, evaluation: explainer_pb2.Evaluation) -> HeatMap:
    """Return the map that an evaluation is of.

    Raises:
        ValueError: if the explanation has none.
    """
    for heat_map in explanation.heat_maps:
        if (heat_map.detection.index, heat_map.target) == (evaluation.detection_index, evaluation.target):
            return heat_map
    raise ValueError(f"detection {evaluation.detection_index} has no map of {evaluation.target!r}")
