"""Import the peers that whybox is compared with; they are test-only dependencies."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
import warnings
from typing import Any


def xaitk(module: str) -> Any:
    """Return a module of xaitk-saliency, such as ``impls.gen_detector_prop_sal.drise_scoring``.

    0.7.0, the last release that asks neither for NumPy 1 nor for an old setuptools, reads its own version
    through `pkg_resources`, which setuptools no longer has: it is given the one function of it.
    """
    name = "pkg_resources"
    if "xaitk_saliency" not in sys.modules and name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.get_distribution = importlib.metadata.distribution  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
        try:
            importlib.import_module("xaitk_saliency")
        finally:
            del sys.modules[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"xaitk_saliency.{module}")
