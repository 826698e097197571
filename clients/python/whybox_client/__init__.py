"""The Python client of whybox: ask what an object detector looked at, over REST or gRPC.

    from whybox_client import Client

    with Client("http://127.0.0.1:8000") as client:
        explanation = client.explain("retinanet-signs", "street.jpg", targets=["class", "x1"])
        explanation[0]["class"].save("why.png")

Importing this package loads neither torch, grpc, httpx, NumPy nor Pillow: each name below brings what it
needs when it is first used. The exceptions are in `whybox_client.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whybox_client.client import AsyncClient, Client
    from whybox_client.errors import RequestError, ServiceError, WhyboxError
    from whybox_client.evaluations import Evaluation, Evaluations
    from whybox_client.folders import image_files
    from whybox_client.inversions import (
        Inversion,
        InversionEvent,
        InversionProgress,
        InversionResult,
        LayoutMatch,
        LossCurve,
    )
    from whybox_client.jobs import AsyncInversionJob, InversionJob
    from whybox_client.layouts import GroundTruth, Layout, LayoutObject
    from whybox_client.models import (
        InputLimits,
        Invertible,
        Layer,
        Measure,
        Method,
        Model,
        Nms,
        Parameter,
        Preset,
        SpatialShift,
    )
    from whybox_client.results import Detection, DetectionMaps, Detections, Explanation, HeatMap, Stage
    from whybox_client.why_not import SuppressedDetection, WhyNot

__all__ = [
    "AsyncClient",
    "AsyncInversionJob",
    "Client",
    "Detection",
    "DetectionMaps",
    "Detections",
    "Evaluation",
    "Evaluations",
    "Explanation",
    "GroundTruth",
    "HeatMap",
    "InputLimits",
    "Inversion",
    "InversionEvent",
    "InversionJob",
    "InversionProgress",
    "InversionResult",
    "Invertible",
    "Layer",
    "Layout",
    "LayoutMatch",
    "LayoutObject",
    "LossCurve",
    "Measure",
    "Method",
    "Model",
    "Nms",
    "Parameter",
    "Preset",
    "RequestError",
    "ServiceError",
    "SpatialShift",
    "Stage",
    "SuppressedDetection",
    "WhyNot",
    "WhyboxError",
    "image_files",
]

_MODULES = {
    "client": ("AsyncClient", "Client"),
    "errors": ("RequestError", "ServiceError", "WhyboxError"),
    "evaluations": ("Evaluation", "Evaluations"),
    "folders": ("image_files",),
    "inversions": (
        "Inversion",
        "InversionEvent",
        "InversionProgress",
        "InversionResult",
        "LayoutMatch",
        "LossCurve",
    ),
    "jobs": ("AsyncInversionJob", "InversionJob"),
    "layouts": ("GroundTruth", "Layout", "LayoutObject"),
    "models": (
        "InputLimits",
        "Invertible",
        "Layer",
        "Measure",
        "Method",
        "Model",
        "Nms",
        "Parameter",
        "Preset",
        "SpatialShift",
    ),
    "results": ("Detection", "DetectionMaps", "Detections", "Explanation", "HeatMap", "Stage"),
    "why_not": ("SuppressedDetection", "WhyNot"),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
