"""Layout inversions as the service tells of them: how far one is, and what came of it.

`whybox_client.jobs` has the objects that ask for more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whybox_client import errors
from whybox_client.floats import shortest
from whybox_client.images import Picture, png
from whybox_client.layouts import Layout
from whybox_client.models import ParameterValue, params_of
from whybox_client.results import Detection, Detections
from whybox_proto.states import ENDED
from whybox_proto.v1 import explainer_pb2

if TYPE_CHECKING:
    from PIL import Image

    from whybox_client.notebooks import Screen


@dataclass(frozen=True)
class InversionProgress:
    """How far an inversion is.

    Attributes:
        iteration: iterations done; `iterations`: in all, 0 while that is not known.
        losses: of the last iteration, by name.
        found: objects of the layout that the detector found when it last looked, a few seconds ago at most.
    """

    iteration: int
    iterations: int
    losses: Mapping[str, float] = field(hash=False)
    found: int

    @classmethod
    def from_message(cls, progress: explainer_pb2.InversionProgress) -> InversionProgress:
        """Read it from the wire."""
        return cls(
            progress.iteration,
            progress.iterations,
            {name: shortest(progress.losses[name]) for name in sorted(progress.losses)},
            progress.found,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "iteration": self.iteration,
            "iterations": self.iterations,
            "losses": dict(self.losses),
            "found": self.found,
        }


@dataclass(frozen=True)
class LayoutMatch:
    """How well detections fit a layout. As text, a line that says it.

    An object is found by the detection of its class with the highest IoU, above 0.5.

    Attributes:
        mean_iou: of the objects that are found, with what finds them; 0 where none is.
        recall: share of the objects that are found.
        ap: COCO's average precision, over IoU from 0.5 to 0.95; `ap50`: at 0.5. Means over the classes.
        unmatched: detections with a score above 0.5 that find nothing.
    """

    mean_iou: float
    recall: float
    ap: float
    ap50: float
    unmatched: int

    @classmethod
    def from_message(cls, match: explainer_pb2.LayoutMatch) -> LayoutMatch:
        """Read it from the wire."""
        return cls(
            shortest(match.mean_iou),
            shortest(match.recall),
            shortest(match.ap),
            shortest(match.ap50),
            match.unmatched,
        )

    def __str__(self) -> str:
        return (
            f"mean IoU {self.mean_iou:.2f}, recall {self.recall:.2f}, AP {self.ap:.2f}, "
            f"AP50 {self.ap50:.2f}, {self.unmatched} unmatched"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "mean_iou": self.mean_iou,
            "recall": self.recall,
            "ap": self.ap,
            "ap50": self.ap50,
            "unmatched": self.unmatched,
        }


@dataclass(frozen=True)
class LossCurve:
    """What a loss was in the course of the iterations.

    Attributes:
        name: of the loss.
        iterations: at which it was taken; `values`: what it was there.
    """

    name: str
    iterations: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def from_message(cls, curve: explainer_pb2.LossCurve) -> LossCurve:
        """Read it from the wire."""
        if len(curve.iterations) != len(curve.values):
            raise ValueError(f"the curve of {curve.name!r} has not a value for each iteration")
        return cls(curve.name, tuple(curve.iterations), tuple(map(shortest, curve.values)))

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"name": self.name, "iterations": list(self.iterations), "values": list(self.values)}


@dataclass(frozen=True)
class InversionResult:
    """What came of an inversion: the picture, and how well it fits the layout.

    Attributes:
        name: of the inversion.
        layout: what was asked for.
        detections: what the model finds in the picture.
        match: how well they fit the layout.
        losses: the curves, by name.
        params: a value for every parameter, those that the preset chose included.
        seed: with layout and params it makes the same picture again.
        source: the picture; None where it was not fetched.
    """

    name: str
    layout: Layout
    detections: Detections
    match: LayoutMatch
    losses: Mapping[str, LossCurve] = field(hash=False)
    params: Mapping[str, ParameterValue] = field(hash=False)
    seed: int
    source: Picture | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_message(cls, inversion: explainer_pb2.Inversion, source: Picture | None) -> InversionResult:
        """Read it from the wire; `source` is the picture."""
        request, result = inversion.request, inversion.result
        curves = map(LossCurve.from_message, result.losses)
        return cls(
            name=inversion.name,
            layout=Layout.from_message(request.layout),
            detections=Detections(
                model=request.model,
                model_version="",
                width=request.layout.width,
                height=request.layout.height,
                items=tuple(map(Detection.from_message, result.detections)),
                suppressed=(),
                warnings=(),
                stages=(),
                request_id="",
                source=source or Picture(b""),
            ),
            match=LayoutMatch.from_message(result.match),
            losses={curve.name: curve for curve in curves},
            params=params_of(result.params),
            seed=request.seed,
            source=source,
        )

    @property
    def image(self) -> Image.Image:
        """The picture that was found, (H, W), RGB.

        Raises:
            ValueError: where it was not fetched, as those of a list are not: a job's `image` fetches it.
        """
        if self.source is None:
            raise ValueError(
                f"the picture of {self.name} was not fetched: use its job's image() or refresh()"
            )
        return self.source.pixels

    def plot_losses(self) -> Image.Image:
        """Draw the loss curves, on a logarithmic scale."""
        from whybox_client import figures

        return figures.losses(self)

    def picture(self) -> Image.Image:
        """Draw a contact sheet: the layout, what the model finds in the picture, the picture, the losses."""
        from whybox_client import figures

        return figures.inversion(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture()` to a file; its suffix says the format. `image.save` writes the picture alone."""
        self.picture().save(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, ready for JSON."""
        return {
            "name": self.name,
            "model": self.detections.model,
            "layout": self.layout.to_dict(),
            "detections": [detection.to_dict() for detection in self.detections],
            "match": self.match.to_dict(),
            "losses": [curve.to_dict() for curve in self.losses.values()],
            "params": dict(self.params),
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return f"<InversionResult of {self.name} by {self.detections.model}: {self.match}>"

    def _repr_png_(self) -> bytes:
        return png(self.picture())


@dataclass(frozen=True)
class Inversion:
    """A layout inversion, as it was when it was asked about.

    Attributes:
        name: ``inversions/ID``.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        progress: how far it is.
        model: what is inverted.
        layout: what is to be found.
        params: as they were asked for.
        seed: of its random numbers.
        priority: 0 to 9; among the queued the highest runs first.
        idempotency_key: who asks with the same key again gets this inversion.
        match: how well its picture fits the layout; None until it has succeeded.
        result: what came of it; None until it has succeeded, and in a list.
        error: why it failed; None where it has not.
        create_time, update_time: when it was asked for, and when it last changed; None: not told.
    """

    name: str
    state: str
    progress: InversionProgress
    model: str
    layout: Layout = field(repr=False)
    params: Mapping[str, ParameterValue] = field(hash=False)
    seed: int
    priority: int
    idempotency_key: str = field(repr=False)
    match: LayoutMatch | None
    result: InversionResult | None
    error: errors.WhyboxError | None = field(compare=False)
    create_time: datetime | None
    update_time: datetime | None

    @classmethod
    def from_message(
        cls, inversion: explainer_pb2.Inversion, source: Picture | None = None, *, brief: bool = False
    ) -> Inversion:
        """Read it from the wire.

        Args:
            inversion: the message.
            source: its latest picture, where that is at hand.
            brief: whether it comes from a list, where a result is its match alone.
        """
        request = inversion.request
        ended_well = inversion.HasField("result")
        times = [
            getattr(inversion, name).ToDatetime(UTC) if inversion.HasField(name) else None
            for name in ("create_time", "update_time")
        ]
        return cls(
            name=inversion.name,
            state=inversion.state,
            progress=InversionProgress.from_message(inversion.progress),
            model=request.model,
            layout=Layout.from_message(request.layout),
            params=params_of(request.params),
            seed=request.seed,
            priority=request.priority,
            idempotency_key=request.idempotency_key,
            match=LayoutMatch.from_message(inversion.result.match) if ended_well else None,
            result=InversionResult.from_message(inversion, source) if ended_well and not brief else None,
            error=_error(inversion.error) if inversion.HasField("error") else None,
            create_time=times[0],
            update_time=times[1],
        )

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def ended(self) -> bool:
        """Whether it does not go on: it succeeded, failed or was cancelled."""
        return self.state in ENDED

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures, ready for JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "progress": self.progress.to_dict(),
            "model": self.model,
            "layout": self.layout.to_dict(),
            "params": dict(self.params),
            "seed": self.seed,
            "priority": self.priority,
            "match": None if self.match is None else self.match.to_dict(),
            "result": None if self.result is None else self.result.to_dict(),
            "error": None
            if self.error is None
            else {"type": self.error.type, "message": self.error.message, "field": self.error.field},
            "create_time": None if self.create_time is None else self.create_time.isoformat(),
            "update_time": None if self.update_time is None else self.update_time.isoformat(),
        }


@dataclass(frozen=True)
class InversionEvent:
    """One of the events of `InversionJob.watch`. As text, a line that says how far the inversion is.

    Attributes:
        id: where a watch goes on that breaks after it.
        inversion: as it was then.
        source: the latest picture; None while there is none.
    """

    id: str
    inversion: Inversion
    source: Picture | None = field(repr=False, compare=False)
    screen: Screen | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_message(
        cls, event: explainer_pb2.InversionEvent, screen: Screen | None = None
    ) -> InversionEvent:
        """Read it from the wire; `screen` is where the events of the same watch are shown."""
        source = Picture(event.preview) if event.preview else None
        return cls(event.id, Inversion.from_message(event.inversion, source), source, screen)

    @property
    def state(self) -> str:
        """The inversion's state."""
        return self.inversion.state

    @property
    def progress(self) -> InversionProgress:
        """How far the inversion is."""
        return self.inversion.progress

    @property
    def image(self) -> Image.Image | None:
        """The latest picture, (H, W), RGB; None while there is none."""
        return None if self.source is None else self.source.pixels

    def show(self) -> None:
        """Show it: in a notebook its picture, in place of what the same watch showed before.

        Outside a notebook it prints a line that says how far the inversion is.
        """
        from whybox_client.notebooks import Screen

        (self.screen or Screen()).show(self)

    def __str__(self) -> str:
        progress = self.progress
        done = f"iteration {progress.iteration} of {progress.iterations}, {progress.found} objects found"
        return (
            f"{self.inversion.name} {self.state}: {done}"
            if progress.iterations
            else f"{self.inversion.name} {self.state}"
        )

    def _repr_png_(self) -> bytes:
        return png(self.image or self.inversion.layout.picture())


def _error(error: explainer_pb2.Error) -> errors.WhyboxError:
    return errors.CLASSES.get(error.type, errors.InternalError)(
        error.message,
        type=error.type,
        field=error.field,
        expected=error.expected,
        got=error.got,
        request_id=error.request_id,
    )
