"""What can be set of an inversion, and the presets.

Rates and weights are for pictures in 0 to 1. The released code of the paper works on (BGR - mean) / 255,
which differs from that by a constant only, so that its numbers hold here as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from google.protobuf import struct_pb2

from whybox.detectors.base import WhiteBoxDetector
from whybox.methods.base import Param, ParamValue
from whybox_proto.inversions import numbers_of

MAX_PIXELS = 1_000_000
"""Of a layout: the state of a step, 48 bytes a pixel, stays below TorchServe's limit of 64 MiB."""
MIN_SIDE = 32
MAX_OBJECTS = 100

DEFAULT, PAPER = "default", "paper"

PRESETS = {
    DEFAULT: "for pictures that other detectors recognise too, and people can read",
    PAPER: "the released code's of Cao and Johnson, 2021; what it lacks (FCOS, SSD, queries) as RetinaNet",
}


def _setting(
    default: ParamValue,
    description: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    return field(
        default=default,
        metadata={"description": description, "minimum": low, "maximum": high, "choices": choices},
    )


@dataclass(frozen=True)
class Settings:
    """Of one inversion; `PARAMS` is made of these fields.

    Defaults are those of the default preset, but for what `preset` changes for two stages.
    """

    iterations: int = _setting(400, "steps of the picture", 1, 20_000)
    losses: str = _setting(
        "all",
        "what the picture is made for: classes, boxes, masks, or some of them; all: what the layout and the "
        "detector have",
        choices=("all", "cls", "reg", "mask", "cls+reg", "cls+mask", "reg+mask", "cls+reg+mask"),
    )
    single: bool = _setting(
        False, "one candidate alone for each object, that of the best-fitting anchor; nothing is background"
    )
    background: bool = _setting(True, "what fits no object of the layout shall not be found")
    candidates: int = _setting(20, "matched to each object; of queries always one", 1, 100)
    classification: str = _setting(
        "cross-entropy",
        "loss of the classes; queries have that of their training",
        choices=("focal", "cross-entropy"),
    )
    weight_cls: float = _setting(1.0, "of the classes", 0, 1e4)
    weight_reg: float = _setting(6.0, "of the boxes (generalised IoU)", 0, 1e4)
    weight_mask: float = _setting(1.0, "of the masks", 0, 1e4)
    weight_rpn: float = _setting(1.0, "of the first of two stages, over that of the second", 0, 1e4)
    weight_logit: float = _setting(0.02, "of the matched candidates' class logits, which it raises", 0, 1e4)
    level_weights: str = _setting(
        "", "of the pyramid's levels, finest first, five or fewer numbers joined by commas; empty: all 1"
    )
    parametrisation: str = _setting(
        "pyramid",
        "of the picture: its pixels, or a sum of pictures of halved sizes",
        choices=("pixels", "pyramid"),
    )
    init_std: float = _setting(0.05, "of the noise that it starts from, around the middle grey", 0, 1)
    optimiser: str = _setting("adam", "of the picture", choices=("adam", "sgd"))
    learning_rate: float = _setting(0.1, "of the first iteration", 1e-6, 100)
    momentum: float = _setting(0.9, "of the optimiser", 0, 0.999)
    epsilon: float = _setting(
        0.03, "of Adam: where gradients are smaller, the picture is hardly moved", 1e-12, 1
    )
    decay: float = _setting(1.0, "factor of the learning rate, every `decay_every` iterations", 0.01, 1)
    decay_every: int = _setting(300, "iterations", 1, 20_000)
    tv_weight: float = _setting(3e-3, "of the total variation, summed over the pixels", 0, 1e3)
    tv_exponent: float = _setting(2.0, "of the total variation", 1, 4)
    norm_weight: float = _setting(0.0, "of the distance from the middle grey, summed over the pixels", 0, 1e3)
    norm_exponent: float = _setting(6.0, "of that distance", 1, 12)
    blur_every: int = _setting(0, "iterations between blurs of the picture; 0: none", 0, 20_000)
    blur_sigma: float = _setting(1.0, "of the first blur, in pixels", 0.1, 20)
    blur_decay: float = _setting(1.0, "factor of the blur's sigma, from one blur to the next", 0.5, 1)
    blur_least: float = _setting(0.5, "least sigma of a blur, in pixels", 0.1, 20)
    jitter: int = _setting(
        16, "pixels by which the picture is moved at most, at random, with its layout", 0, 64
    )
    jitter_every: int = _setting(1, "iterations between moves", 1, 1000)
    scale: float = _setting(0.2, "share by which the picture is scaled down at most, at random", 0, 0.3)
    contrast: float = _setting(
        0.2, "by which contrast, brightness and colours are changed at most, at random", 0, 1
    )
    noise: float = _setting(0.02, "standard deviation of the noise added before the detector looks", 0, 1)
    channel_noise: float = _setting(
        0.1, "by which each channel of the backbone is weakened or strengthened, standard deviation", 0, 1
    )
    settle: float = _setting(
        0.3,
        "share of the iterations, the last ones, in which the detector looks at the picture as it is: "
        "nothing moved, scaled, recoloured, roughened, and its channels as they are",
        0,
        1,
    )
    anneal: float = _setting(
        0.6, "share of the iterations, the last ones, in which the steps become small", 0, 1
    )

    def strength(self, iteration: int) -> float:
        """Of the step in an iteration, counted from 0: 1, and in the end towards 0."""
        left = (self.iterations - iteration) / self.iterations
        return min(1.0, left / self.anneal) if self.anneal else 1.0

    def settled(self, iteration: int) -> bool:
        """Whether the detector looks at the picture as it is in an iteration, counted from 0."""
        return iteration >= round(self.iterations * (1 - self.settle))

    def matched(self, stage: str, iteration: int) -> int:
        """How many candidates of a stage are matched to each object in an iteration, counted from 0.

        In the end the best few of two stages, whose boxes become the detections, shall lie right. A dense
        head's candidates are neighbours, and more of them do no harm.
        """
        few = stage != "dense" and self.settled(iteration)
        return math.ceil(self.candidates / 5) if few else self.candidates

    @property
    def levels(self) -> tuple[float, ...]:
        """`level_weights` as numbers."""
        return tuple(numbers_of(self.level_weights))


PARAMS: tuple[Param, ...] = (
    Param("preset", DEFAULT, "where the other parameters come from", choices=tuple(PRESETS)),
    *(Param(f.name, f.default, **f.metadata) for f in fields(Settings)),  # type: ignore[arg-type]
)


def preset(name: str, detector: WhiteBoxDetector) -> Settings:
    """Return the settings of a preset for a detector."""
    two_stages = "roi" in detector.stages
    if name == DEFAULT:
        # Of boxes that lie in several proposals, each pulls its own way, and classes win.
        return Settings(weight_reg=15.0) if two_stages else Settings()
    return Settings(
        iterations=1000,
        candidates=1,
        classification="cross-entropy",
        weight_cls=10.0 if two_stages else 30.0,
        weight_reg=30.0,
        weight_mask=10.0,
        weight_logit=1.0,
        level_weights="0.125,0.5,1,2,8",
        parametrisation="pixels",
        init_std=0.2,
        optimiser="sgd",
        learning_rate=2.0 if two_stages else 1.0,
        momentum=0.9 if two_stages else 0.5,
        decay=0.7 if detector.masks else 0.6,
        tv_weight=1e-5 if detector.masks else 1e-7,
        norm_weight=1e-5 if detector.masks else 1e-7,
        blur_every=5,
        blur_sigma=5.0,
        blur_decay=0.985,
        jitter=0,
        scale=0.0,
        contrast=0.0,
        noise=0.0,
        channel_noise=0.0,
        settle=0.0,
        anneal=0.0,
    )


def settings_of(params: Mapping[str, ParamValue], detector: WhiteBoxDetector) -> Settings:
    """Return a preset with some values changed.

    Args:
        params: some of `PARAMS`, checked against them.
        detector: to be inverted.
    """
    chosen = dict(params)
    base = preset(str(chosen.pop("preset", DEFAULT)), detector)
    return replace(base, **chosen)  # type: ignore[arg-type]


def struct_of(settings: Settings) -> struct_pb2.Struct:
    """Write every setting but the preset's name, as ``params`` has them."""
    struct = struct_pb2.Struct()
    struct.update(asdict(settings))
    return struct
