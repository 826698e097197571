"""How good the maps of an answer are: one question for each map, spread over the model's workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2
from whybox_service import pictures
from whybox_service.asking import Asking
from whybox_service.calls import Call
from whybox_service.spreading import Spreading


@dataclass(frozen=True)
class Measuring:
    """What is asked of an answer's maps.

    Attributes:
        truth: the objects that are really there; None where they are not known.
        measures: names; empty for all that can be taken.
    """

    truth: types_pb2.Layout | None = None
    measures: Sequence[str] = ()


def check_measured(model: types_pb2.Model) -> None:
    """Refuse, before anything is explained, what a model without measures cannot answer.

    Raises:
        ContractError: `not_implemented`.
    """
    if not model.measures:
        raise ContractError(
            "not_implemented", f"the model {model.name!r} takes no measures", field="evaluate"
        )


class Evaluating:
    """Measures heat maps."""

    def __init__(self, asking: Asking, spreading: Spreading) -> None:
        self._asking = asking
        self._spreading = spreading

    async def measure(
        self,
        model: types_pb2.Model,
        request: explainer_pb2.ExplainRequest,
        answer: explainer_pb2.ExplainResponse,
        asked: Measuring,
        call: Call,
    ) -> list[explainer_pb2.Evaluation]:
        """Measure the maps of an answer, in their order, and add the stage ``measure`` to it.

        Args:
            model: that answered.
            request: what it answered.
            answer: its maps at the method's own resolution, in ``f32``.
            asked: which measures.
            call: the request.

        Raises:
            ContractError: that of the map that failed.
        """
        started = time.perf_counter()

        async def work(piece: tuple[int, types_pb2.HeatMap]) -> explainer_pb2.Evaluation:
            _, heat_map = piece
            question = worker_pb2.MeasureRequest(
                model=model.name,
                image=request.image,
                detection=pictures.detection_of(answer, heat_map),
                heat_map=heat_map,
                truth=asked.truth,
                measures=asked.measures,
                seed=request.seed,
            )
            wrapped = worker_pb2.WorkerRequest(measure=question)
            return (await self._asking.ask(model, wrapped, call, admitted=True)).reply.measure

        made: dict[int, explainer_pb2.Evaluation] = {}
        pieces = iter(enumerate(pictures.heat_maps_of(answer)))
        async with aclosing(self._spreading.over(model, pieces, work)) as done:
            async for (position, _), evaluation in done:
                made[position] = evaluation
        answer.stages.add(name="measure", seconds=time.perf_counter() - started)
        return [made[position] for position in sorted(made)]
