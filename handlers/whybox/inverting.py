"""From a step of an inversion, as it is asked for, to what it answers."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from whybox.detectors.base import WhiteBoxDetector
from whybox.inversion.inverter import Inverter
from whybox.inversion.layout import Layout, match_of, matches
from whybox.inversion.settings import settings_of, struct_of
from whybox.inversion.state import StateError, load_state
from whybox.methods.base import ParamValue
from whybox.parameters import value_of
from whybox.patience import Patience
from whybox.selection import messages_of
from whybox_proto.checks import check_known, check_range
from whybox_proto.errors import ContractError
from whybox_proto.inversions import check_inversion, check_start
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

MAX_SECONDS = 60.0
"""Of one step, in which the worker does nothing else."""

LOOK_SECONDS = 4.0
"""Of iterations, after which the detector looks at what there is; each look costs about an iteration."""

_COMPRESSION = 1
"""Of a step's picture, noise for the most part: a higher one takes longer and saves next to nothing."""


def check_advance(request: worker_pb2.AdvanceRequest, model: types_pb2.Model) -> None:
    """Check a step's request against the model.

    Raises:
        ContractError: with the path of the first field at fault.
    """
    check_known(request)
    check_inversion(request.inversion, model)
    check_range(request.seconds, field="seconds", low=0, high=MAX_SECONDS)


class Inverting:
    """Advances inversions of one detector.

    Args:
        detector: to be inverted.
        model: its description.
    """

    def __init__(self, detector: WhiteBoxDetector, model: types_pb2.Model) -> None:
        self._detector = detector
        self._model = model

    def answer(
        self,
        request: worker_pb2.AdvanceRequest,
        picture: Tensor | None,
        patience: Patience,
        timed: Callable[[str, float], None] = lambda *_: None,
    ) -> worker_pb2.Advance:
        """Do one step.

        Args:
            request: a step, checked.
            picture: uint8 (H, W, 3) to start from, if the client gave one.
            patience: asked between two iterations.
            timed: told the seconds of each stage: `load` (the state), `iterate`, `detect`, `encode` (state,
                picture and result).

        Raises:
            ContractError: if the picture is not of the layout's size, the settings do not fit the detector,
                or the state is none of this inversion.
        """
        clock = _Clock(timed)
        asked = request.inversion
        layout = Layout.of(asked.layout, self._detector.labels, self._detector.device)
        if picture is not None:
            check_start(asked.layout, picture.shape[1], picture.shape[0])
        settings = settings_of(self._params(asked), self._detector)
        inverter = Inverter(self._detector, layout, settings, asked.seed)
        state = inverter.begin(picture)
        if request.state:
            try:
                state = load_state(request.state, state)
            except StateError as error:
                raise ContractError(
                    "invalid_request", str(error), field="state", expected="the answer of the step before"
                ) from error
        clock.ended("load")
        if not inverter.finished(state):
            inverter.advance(state, request.seconds, patience.check)
        state.unseen += clock.ended("iterate")
        made = inverter.picture(state)
        found = None
        if inverter.finished(state) or state.unseen >= LOOK_SECONDS or not request.state:
            found = self._detector.detect([made])[0]
            shown = found[found.scores >= self._model.score_threshold]
            state.found = int((matches(layout.boxes, layout.labels, shown) >= 0).sum())
            state.unseen = 0.0
        clock.ended("detect")
        progress = explainer_pb2.InversionProgress(
            iteration=state.iteration,
            iterations=settings.iterations,
            losses=state.losses,
            found=state.found,
        )
        answer = worker_pb2.Advance(state=state.dump(), progress=progress, picture=_png(made))
        if found is not None and inverter.finished(state):
            answer.result.detections.extend(messages_of(shown, self._detector.labels))
            answer.result.match.CopyFrom(match_of(layout, found, self._model.score_threshold))
            for name, curve in state.curves.items():
                answer.result.losses.add(
                    name=name, iterations=[i for i, _ in curve], values=[v for _, v in curve]
                )
            answer.result.params.CopyFrom(struct_of(settings))
        clock.ended("encode")
        return answer

    def _params(self, asked: explainer_pb2.CreateInversionRequest) -> dict[str, ParamValue]:
        described = {param.name: param for param in self._model.inversion.params}
        return {name: value_of(described[name], value) for name, value in asked.params.fields.items()}


class _Clock:
    """Tells how long each of several stages took that follow each other."""

    def __init__(self, timed: Callable[[str, float], None]) -> None:
        self._timed = timed
        self._since = time.perf_counter()

    def ended(self, stage: str) -> float:
        """Tell of a stage that has ended this moment; returns its seconds."""
        now = time.perf_counter()
        seconds = now - self._since
        self._timed(stage, seconds)
        self._since = now
        return seconds


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.cpu().numpy()).save(buffer, format="PNG", compress_level=_COMPRESSION)
    return buffer.getvalue()
