"""Gradients of candidates' outputs by the pixels, for several versions of one picture at once.

The head's part of a gradient comes from the tap of the pyramid's levels, which is local and cheap. Only the
way from the levels to the pixels is a backward pass, one for each object and target; all versions share it,
since no version depends on another's pixels.

Letters: B versions of the picture, N objects, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whybox.detectors.base import Outputs, Target, Trace, WhiteBoxDetector
from whybox.detectors.dense import chunks

WINDOWS = 64
"""Of the levels, in each version, that wait for their backward passes; at least those of one object."""


@dataclass(frozen=True)
class PixelGradient:
    """The gradient of one target of one object.

    Attributes:
        item: position of the object, 0 to N - 1.
        target: position of the target, 0 to T - 1.
        values: float (B, 3, H, W), by the network's input; zero in versions that do not show the object.
    """

    item: int
    target: int
    values: Tensor


def pixel_gradients(
    detector: WhiteBoxDetector, trace: Trace, candidates: Tensor, labels: Tensor, targets: Sequence[Target]
) -> Iterator[PixelGradient]:
    """Yield the gradient of every object and target; none for an object that no version shows.

    It is the exact one for heads without GroupNorm, whose statistics the tap holds constant; a two-stage
    detector's proposals are held fixed.

    Args:
        detector: the detector.
        trace: of B versions.
        candidates: int64 (B, N), positions in the version's `Candidates`; -1 where the object is not shown.
        labels: int64 (N,), the class that each object was chosen for.
        targets: T scalars.
    """
    if trace.outputs is not None:
        yield from _directly(trace, trace.outputs, candidates, labels, targets)
        return
    for part in chunks(len(labels), WINDOWS // len(targets)):
        versions = [
            _windows(detector, trace, version, row[part], labels[part], targets)
            for version, row in enumerate(candidates)
        ]
        for item in range(part.start, part.stop):
            shown = [(b, windows[item - part.start]) for b, windows in enumerate(versions)]
            seen = [(b, window) for b, window in shown if window is not None]
            for target in range(len(targets) if seen else 0):
                yield PixelGradient(item, target, _pull(trace, seen, target))


def _directly(
    trace: Trace,
    outputs: Callable[[int, Tensor, Tensor], Outputs],
    candidates: Tensor,
    labels: Tensor,
    targets: Sequence[Target],
) -> Iterator[PixelGradient]:
    """Go back from the outputs themselves, where there are no levels on the way."""
    for item in range(len(labels)):
        shown = torch.where(candidates[:, item] >= 0)[0].tolist()
        if not shown:
            continue
        with torch.enable_grad():
            said = [outputs(b, candidates[b, item : item + 1], labels[item : item + 1]) for b in shown]
            sums = [torch.cat([target(one) for one in said]).sum() for target in targets]
        for position, value in enumerate(sums):
            (gradient,) = torch.autograd.grad(value, trace.pixels, retain_graph=True)
            yield PixelGradient(item, position, gradient)


@dataclass(frozen=True)
class _Window:
    """Of one object in one version: gradients (T, C, h, w) on a level, from a column and row on."""

    level: int
    origin: tuple[int, int]
    gradients: Tensor


def _windows(
    detector: WhiteBoxDetector,
    trace: Trace,
    version: int,
    candidates: Tensor,
    labels: Tensor,
    targets: Sequence[Target],
) -> list[_Window | None]:
    """Windows of the objects that one version shows, in their order."""
    found: list[_Window | None] = [None] * len(candidates)
    there = torch.where(candidates >= 0)[0]
    if len(there):
        tap = detector.tap(trace.forward, version, "level", candidates[there], labels[there])
        levels = tap.candidate_levels.tolist()
        for window in tap.windows(targets):
            for row, pick in enumerate(window.picks.tolist()):
                x, y = window.origins[row].tolist()
                found[int(there[pick])] = _Window(levels[pick], (x, y), window.gradients[row])
    return found


def _pull(trace: Trace, seen: Sequence[tuple[int, _Window]], target: int) -> Tensor:
    """Take one target's windows on the levels back to the pixels: (B, 3, H, W)."""
    tops: dict[int, Tensor] = {}
    for version, window in seen:
        level = trace.levels[window.level]
        top = tops.setdefault(window.level, torch.zeros_like(level))
        x, y = window.origin
        height, width = level.shape[2:]
        h, w = window.gradients.shape[2:]
        rows, columns = slice(max(0, y), min(height, y + h)), slice(max(0, x), min(width, x + w))
        top[version, :, rows, columns] = window.gradients[
            target, :, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x
        ]
    (gradient,) = torch.autograd.grad(
        [trace.levels[level] for level in tops], trace.pixels, list(tops.values()), retain_graph=True
    )
    return gradient
