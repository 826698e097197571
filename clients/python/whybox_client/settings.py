"""The arguments of `detect` and `explain` as dictionaries, for the calls that hand them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from whybox_client.images import ImageFormat
from whybox_client.models import Nms, ParameterValue
from whybox_client.requests import Expected, Integers, Strings


class DetectSettings(TypedDict, total=False):
    """The arguments of `detect`, but for model, image and request id."""

    score_threshold: float | None
    max_detections: int | None
    labels: Strings
    indices: Integers
    box: Sequence[float] | None
    expected: Expected | None
    nms: str | Nms | None
    explain_suppressed: bool
    model_version: str
    image_format: ImageFormat
    timeout: float | None
    retries: int | None


class ExplainSettings(DetectSettings, total=False):
    """The arguments of `explain`, but for model, image and request id."""

    method: str | None
    targets: Strings
    layer: Strings | None
    params: Mapping[str, ParameterValue] | None
    seed: int
    seconds: float | None
    samples: int | None
    evaluate: bool
    output_size: str | None
    encoding: str | None
    max_side: int | None
