"""The Method contract: what every explanation method takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whybox.detectors.base import Detections, Detector, Forward, Outputs, PostProcessing, Target
from whybox.patience import Patience

SIDES = ("x1", "y1", "x2", "y2")
TARGETS = ("class", *SIDES, "combined")
ParamValue = float | int | bool | str


@dataclass(frozen=True)
class Param:
    """One parameter of a method, as its description tells it.

    Attributes:
        name: as asked for in ``params``.
        default: its value when not asked for; its type is the parameter's type.
        description: what it does, with units.
        minimum, maximum: of a number.
        choices: of a string.
    """

    name: str
    default: ParamValue
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Map:
    """One heat map at the method's own resolution.

    Attributes:
        values: float32 (h, w), higher is more important.
        region: [x1, y1, x2, y2] that the cells cover, image frame.
        signed: negative values mean "speaks against"; in other maps they are noise about 0 (D-RISE).
        samples: that a sampling method drew; None for other methods.
        standard_error: root mean square over the cells of the standard error of a cell's value, in units of
            the values; None where it is not known.
    """

    values: Tensor
    region: tuple[float, float, float, float]
    signed: bool = False
    samples: int | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of a method, for one picture.

    Attributes:
        forward: the pass that found the detections, made with ``keep=True`` (white box only).
        image: position of the picture in that pass.
        detections: those to explain.
        targets: names; see `TARGETS`, and ``class:LABEL``.
        layer: to tap, or several joined by ``+`` where the method combines them; empty for methods that use
            none.
        params: a value for every parameter of the method.
        seed: of the random numbers.
        patience: says whether anybody still waits; methods `check` it between parts of their work.
        picture: uint8 (H, W, 3), upright: for methods that change it and look again.
        max_side: of a map made in pixel space.
        memory: bytes that the work may take beside the model and its forward pass.
        samples: to draw in all; None for the method's own number.
        seconds: after which no more samples are drawn; None for no such limit.
        settings: the post-processing that found the detections; None for the detector's own.
        warnings: what the reader of the maps must know; methods add to it.
    """

    forward: Forward
    image: int
    detections: Detections
    targets: Sequence[str]
    layer: str
    params: Mapping[str, ParamValue]
    seed: int = 0
    patience: Patience = field(default_factory=Patience)
    picture: Tensor | None = None
    max_side: int = 512
    memory: int = 2 * 2**30
    samples: int | None = None
    seconds: float | None = None
    settings: PostProcessing | None = None
    warnings: list[str] = field(default_factory=list)


class Method(ABC):
    """An explanation method.

    Attributes:
        name: as asked for.
        description: in a sentence, with its paper.
        params: what can be set.
        targets: what it explains, of `TARGETS`.
        sampling: it draws random samples and obeys a budget; see `whybox.methods.sampling`.
        combines_layers: it takes several layers joined by ``+``, for one map of them all.
    """

    name: str
    description: str
    params: tuple[Param, ...] = ()
    targets: tuple[str, ...] = ("class",)
    sampling: bool = False
    combines_layers: bool = False

    @abstractmethod
    def layers(self, detector: Detector) -> list[str] | None:
        """Name the layers of a detector that this method can use, its own first choice first.

        An empty list: the method uses no layer. None: it cannot explain this detector.
        """

    def explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        """Make the maps of every detection and target.

        Returns:
            For each detection, a map for each target, in the order asked.

        Raises:
            ValueError: if the question names a target, layer or parameter that the method does not have.
        """
        self.check(detector, question)
        maps = self._explain(detector, question) if len(question.detections) else []
        for row in maps:
            for made in row:
                if made.values.ndim != 2 or not bool(torch.isfinite(made.values).all()):
                    raise RuntimeError(f"{self.name} made a map that is not finite (h, w)")
        return maps

    def check(self, detector: Detector, question: Question) -> None:
        """Check that a question can be asked of this method and detector.

        Raises:
            ValueError: if it names a target, layer or parameter that the method does not have.
        """
        for target in question.targets:
            head, _, label = target.partition(":")
            if head not in self.targets or (label and (head != "class" or label not in detector.labels)):
                raise ValueError(f"targets of {self.name} are {', '.join(self.targets)}; got {target!r}")
        layers = self.layers(detector)
        if layers is None:
            raise ValueError(f"{self.name} cannot explain a {type(detector).__name__}")
        asked = question.layer.split("+") if self.combines_layers else [question.layer]
        if len(set(asked)) < len(asked) or not set(asked) <= set(layers or [""]):
            raise ValueError(f"layers of {self.name} are {', '.join(layers)}; got {question.layer!r}")
        if set(question.params) != {param.name for param in self.params}:
            raise ValueError(
                f"expected a value for each parameter of {self.name}; got {dict(question.params)}"
            )

    @abstractmethod
    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        """Make the maps; the question has been checked and has at least one detection."""


def scalar(target: str, labels: Sequence[str], *, score: str = "score") -> Target:
    """Turn a target's name into a scalar of a candidate's outputs.

    A positive derivative of a side means "a larger box" for all four sides, so x1 and y1 turn their sign
    (METHODS, ODAM). ``combined`` is no scalar.

    Args:
        target: its name.
        labels: of the detector.
        score: of a class: the final ``score``, or the ``logit`` that the head gives it.

    Raises:
        ValueError: for a name that is not one.
    """

    def classes(outputs: Outputs) -> Tensor:
        return outputs.logits if score == "logit" else outputs.scores  # [N, K]

    head, _, label = target.partition(":")
    if head == "class" and label:
        column = list(labels).index(label)
        return lambda outputs: classes(outputs)[:, column]
    if head == "class":
        return lambda outputs: classes(outputs).gather(1, outputs.labels[:, None])[:, 0]
    if head in SIDES:
        side = SIDES.index(head)
        sign = -1.0 if side < 2 else 1.0
        return lambda outputs: sign * outputs.sides[:, side]
    raise ValueError(f"target {target!r} is not a scalar of a candidate")


def scalar_names(targets: Sequence[str]) -> list[str]:
    """Name the scalars that targets are made of: ``combined`` is of the class and the four sides."""
    names = [target for target in targets if target != "combined"]
    if "combined" in targets:
        names += [target for target in ("class", *SIDES) if target not in names]
    return names


def normalise(values: Tensor) -> Tensor:
    """Min-max normalise a map to 0…1; a constant map becomes zeros."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if float(high) > float(low) else torch.zeros_like(values)
