"""What a recipe records of its detector's spatial shift, and what a reader of heat maps must know of it.

`whybox diagnose` measures and writes ``diagnosis.spatial_shift`` of a recipe, a mapping for each layer. Here
it is read and checked for the model's description, and turned into a warning where maps may mislead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from whybox.recipe import RecipeError
from whybox_proto.v1 import types_pb2

SECTION = "spatial_shift"

NUMBERS = ("median", "low", "high", "noise", "limit", "above", "x", "y", "inward", "room")
"""Of a recorded shift, as in the message `SpatialShift`; x, y and inward are signed."""

_SIGNED = ("x", "y", "inward")


def misleads(*, median: float, low: float, noise: float, limit: float) -> bool:
    """Whether a layer's maps may mislead: the shift is above the limit, and surely above the noise.

    Args:
        median: distance of the centres of energy, in units of the box.
        low: lower end of the median's interval.
        noise: median distance between two maps that differ in their random masks alone.
        limit: above which a shift matters.
    """
    return median > limit and low > noise


def read_shifts(diagnosis: Mapping[str, Any], layers: Collection[str]) -> list[types_pb2.SpatialShift]:
    """Read the shifts that a recipe records.

    Args:
        diagnosis: the recipe's field.
        layers: of the detector.

    Raises:
        RecipeError: for a layer that the detector does not have, or numbers that no shift has.
    """
    for name in diagnosis:
        if name != SECTION:
            raise RecipeError(f"diagnosis: expected {SECTION}; got {name!r}")
    recorded = diagnosis.get(SECTION, {})
    if not isinstance(recorded, Mapping):
        raise RecipeError(f"diagnosis.{SECTION}: expected a mapping; got {recorded!r}")
    shifts = []
    for layer, figures in recorded.items():
        where = f"diagnosis.{SECTION}.{layer}"
        if layer not in layers:
            raise RecipeError(f"diagnosis.{SECTION}: expected layers of {', '.join(layers)}; got {layer!r}")
        if not isinstance(figures, Mapping):
            raise RecipeError(f"{where}: expected a mapping; got {figures!r}")
        shifts.append(_read(figures, layer, where))
    return shifts


def _read(figures: Mapping[str, Any], layer: str, where: str) -> types_pb2.SpatialShift:
    expected = (*NUMBERS, "measured_on")
    if set(figures) != set(expected):
        raise RecipeError(f"{where}: expected {', '.join(expected)}; got {', '.join(map(str, figures))}")
    numbers: dict[str, float] = {}
    for name in NUMBERS:
        value = figures[name]
        least = -math.inf if name in _SIGNED else 0.0
        most = 1.0 if name == "above" else math.inf
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            wanted = "a number" if name in _SIGNED else "0 to 1" if name == "above" else "0 or more"
            raise RecipeError(f"{where}.{name}: expected {wanted}; got {value!r}")
        numbers[name] = float(value)
    if numbers["low"] > numbers["high"]:
        raise RecipeError(f"{where}.high: expected {numbers['low']:g} or more; got {numbers['high']:g}")
    if not isinstance(figures["measured_on"], str):
        raise RecipeError(f"{where}.measured_on: expected a string; got {figures['measured_on']!r}")
    told = misleads(**{name: numbers[name] for name in ("median", "low", "noise", "limit")})
    return types_pb2.SpatialShift(layer=layer, **numbers, measured_on=figures["measured_on"], misleads=told)


def shift_warning(model: types_pb2.Model, method: str, layer: str) -> str | None:
    """Say that maps may mislead, in a sentence; None where nothing is known against them.

    Of a layer that was not diagnosed itself, the largest shift found on the detector's other layers is told:
    of region features, which are pooled from the levels, theirs.

    Args:
        model: the description.
        method: its name.
        layer: that it looks at, or several joined by ``+``; none of the detector's: it works in image space.
    """
    features = [one.name for one in model.layers]
    known = {shift.layer: shift for shift in model.spatial_shifts}
    worst = max((s for s in known.values() if s.misleads), key=lambda s: float(s.median), default=None)
    found = [known.get(name, worst) for name in layer.split("+") if name in features]
    bad = [shift for shift in found if shift is not None and shift.misleads]
    if not bad:
        return None
    shift = max(bad, key=lambda shift: float(shift.median))
    return (
        f"{method} on {layer} may point at the wrong place: this detector moves what decides by "
        f"{shift.median:.2f} of the box between the image and {shift.layer} (95 % interval "
        f"{shift.low:.2f} to {shift.high:.2f}, limit {shift.limit:g}); "
        f"use a method of image space: {_instead(model, features)}"
    )


def _instead(model: types_pb2.Model, features: Collection[str]) -> str:
    """Name the methods that need no layer of the detector."""
    names = []
    for method in model.methods:
        if not method.layers:
            names.append(method.name)
        names += [f"{method.name} on {layer}" for layer in method.layers if layer not in features]
    return ", ".join(names)
