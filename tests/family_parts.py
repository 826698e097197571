"""Every family and architecture, small and with random weights: what the shared contract test runs on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from builders import ARCHITECTURE_NAMES, LABELS, random_model
from whybox.detectors.base import WhiteBoxDetector
from whybox.detectors.torchvision import wrap

TRANSFORMERS = (
    *("detr", "conditional_detr", "deformable_detr", "deformable_detr_two_stage"),
    *("rt_detr", "rt_detr_v2", "d_fine"),
)
DETECTRON2 = ("retinanet", "fcos", "faster-rcnn", "mask-rcnn", "cascade", "c4", "dc5")


def _torchvision(name: str, _: Path) -> WhiteBoxDetector:
    return wrap(random_model(name), LABELS, background=True)


def _transformers(name: str, _: Path) -> WhiteBoxDetector:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from query_models import random_query_detector

    return random_query_detector(name)


def _detectron2(name: str, folder: Path) -> WhiteBoxDetector:
    pytest.importorskip("detectron2", reason="detectron2 is not installed: see docs/detectors/detectron2.md")
    from detectron2_parts import load

    return load(name, folder)


DETECTORS: dict[str, Callable[[Path], WhiteBoxDetector]] = {
    f"{family}/{name}": partial(make, name)
    for family, names, make in (
        ("torchvision", ARCHITECTURE_NAMES, _torchvision),
        ("transformers", TRANSFORMERS, _transformers),
        ("detectron2", DETECTRON2, _detectron2),
    )
    for name in names
}
"""Family and architecture → makes a detector of `LABELS` that finds some objects in noise, in a new folder.

Where the family's library is not installed, it skips the test.
"""


def in_double(detector: WhiteBoxDetector) -> WhiteBoxDetector:
    """Copy a detector, in double precision."""
    copied = copy.deepcopy(detector)
    model: nn.Module = copied.model  # type: ignore[attr-defined]
    if type(copied).__module__ == "whybox.detectors.detectron2":  # which decodes boxes in single precision
        import detectron2_reference

        detectron2_reference.in_double(model)
    else:
        model.double()
    return copied
