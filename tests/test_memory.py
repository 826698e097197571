"""Bytes are counted as tensors are made and let go, and what is counted bounds what is needed."""

from __future__ import annotations

import gc

import pytest
import torch

from builders import ARCHITECTURE_NAMES, LABELS, random_model
from whybox.detectors.base import Batch, Frame
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.memory import SIDE, SLACK, Footprint, forward_footprint, gradient_footprint, peak

MIB = 2**20


def test_tensors_count_from_when_they_are_made_until_they_are_let_go() -> None:
    def work() -> None:
        a = torch.zeros(MIB // 4)
        b = a + 1
        del a
        c = b[: MIB // 8] * 2  # a view takes nothing, its product half
        del b
        torch.cat([c, c])

    assert peak(work) == 2 * MIB


def test_what_was_there_before_does_not_count() -> None:
    before = torch.zeros(MIB)
    assert peak(lambda: before.add_(1)) == 0
    assert peak(lambda: before.view(2, -1)[0].sum()) == 4


def test_what_a_graph_keeps_counts() -> None:
    leaf = torch.zeros(MIB // 4, requires_grad=True)

    def work() -> None:
        x = leaf
        for _ in range(8):
            x = x.exp()  # keeps its result
        torch.autograd.grad(x.sum(), leaf)

    assert 8 * MIB <= peak(work) <= 12 * MIB


def test_the_count_does_not_depend_on_the_garbage_collector() -> None:
    def work() -> None:
        for _ in range(3):
            cycle: list[object] = [torch.zeros(MIB // 4)]
            cycle.append(cycle)
            gc.collect(0)

    assert [peak(work) for _ in range(3)] == [peak(work)] * 3
    assert gc.isenabled()


def test_counting_that_fails_leaves_no_trace() -> None:
    with pytest.raises(ZeroDivisionError):
        peak(lambda: 1 // 0)
    assert gc.isenabled()


def test_a_batch_holds_what_fits_and_one_at_least() -> None:
    footprint = Footprint(peak=100 * MIB)
    assert footprint.bytes(SIDE**2) == SLACK * 100 * MIB
    assert footprint.bytes(2 * SIDE**2) == 2 * footprint.bytes(SIDE**2)
    assert footprint.bytes(100) == footprint.bytes(SIDE**2), "a small picture is counted like the known one"
    assert footprint.pictures(SIDE**2, 1000 * MIB) == 8
    assert footprint.pictures(SIDE**2, 1) == 1


@pytest.fixture(params=ARCHITECTURE_NAMES, scope="module")
def detector(request: pytest.FixtureRequest) -> TorchvisionDetector:
    return wrap(random_model(request.param), LABELS, background=True)


def batch_of(count: int, height: int, width: int) -> Batch:
    pixels = torch.randn((count, 3, height, width), generator=torch.Generator().manual_seed(1))
    return Batch(pixels, (Frame(width, height, width, height),) * count)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 96, 128), (1, 384, 512), (3, 128, 192)])
def test_the_footprint_bounds_what_passes_take(
    detector: TorchvisionDetector, count: int, height: int, width: int
) -> None:
    batch = batch_of(count, height, width)
    forward = peak(lambda: detector.forward(batch))
    assert forward <= count * forward_footprint(detector).bytes(height * width)
    if height * width >= SIDE**2:
        assert forward >= 0.5 * forward_footprint(detector).bytes(height * width), "a bound, but not by far"
    if detector.traces:

        def gradient() -> None:
            trace = detector.trace(batch, {})
            torch.autograd.grad(trace.levels[0].sum(), trace.pixels)

        assert peak(gradient) <= count * gradient_footprint(detector).bytes(height * width)


def test_it_is_counted_once(detector: TorchvisionDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    first = forward_footprint(detector)
    monkeypatch.setattr(detector, "forward", lambda _: pytest.fail("counted again"))
    assert forward_footprint(detector) is first
    assert torch.is_grad_enabled()
