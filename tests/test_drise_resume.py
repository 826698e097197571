"""Running the network on from a changed layer, on every architecture and layer."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from builders import ARCHITECTURE_NAMES, LABELS, random_image, random_model
from slow_reference import full_levels
from whybox.detectors.base import Forward
from whybox.detectors.torchvision import TorchvisionDetector, wrap


class Case:
    """A detector and a pass over two pictures."""

    def __init__(self, architecture: str) -> None:
        self.model = random_model(architecture)
        self.detector: TorchvisionDetector = wrap(self.model, LABELS, background=True)
        ((_, batch),) = self.detector.prepare([random_image(90, 118), random_image(90, 118, seed=1)])
        self.forward: Forward = self.detector.forward(batch, keep=True)
        self.layers = ["level", *self.forward.stages]

    def maps(self, layer: str) -> list[Tensor]:
        forward = self.forward
        return list(forward.levels.values()) if layer == "level" else [forward.stages[layer]]


@pytest.fixture(scope="module", params=ARCHITECTURE_NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_unchanged_maps_give_the_same_outputs(case: Case) -> None:
    """Bit for bit, as a picture alone; and in a batch up to how it is cut."""
    ((_, batch),) = case.detector.prepare([random_image(90, 118, seed=1)])
    alone = case.detector.forward(batch, keep=True)
    expected = case.detector.candidates(alone, 0)
    for layer in case.layers:
        maps = list(alone.levels.values()) if layer == "level" else [alone.stages[layer]]
        again = case.detector.candidates(case.detector.resume(alone, 0, layer, [m * 1.0 for m in maps]), 0)
        assert torch.equal(again.boxes, expected.boxes), layer
        assert torch.equal(again.scores, expected.scores), layer
        resumed = case.detector.resume(case.forward, 1, layer, [m[1:].clone() for m in case.maps(layer)])
        found = case.detector.postprocess(
            case.detector.candidates(resumed, 0), resumed.batch.frames[0], case.detector.defaults
        )
        wanted = case.detector.postprocess(expected, batch.frames[0], case.detector.defaults)
        torch.testing.assert_close(found.boxes, wanted.boxes, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-4, rtol=1e-4)


def test_changed_maps_give_what_the_model_makes_of_them(case: Case) -> None:
    """Against the stages run one after the other, a version at a time."""
    generator = torch.Generator().manual_seed(0)
    for layer in case.layers:
        kept = [torch.rand(3, 1, *m.shape[2:], generator=generator) for m in case.maps(layer)]
        changed = [m[1:] * k for m, k in zip(case.maps(layer), kept, strict=True)]
        resumed = case.detector.resume(case.forward, 1, layer, changed)
        assert len(resumed.batch.frames) == 3
        for version in range(3):
            own = [m[version : version + 1] for m in changed]
            if layer == "level":
                levels = OrderedDict(zip(case.forward.levels, own, strict=True))
            else:
                stages = {name: stage[1:] for name, stage in case.forward.stages.items()}
                levels = full_levels(case.model, stages, layer, own[0])
            for name, level in levels.items():
                torch.testing.assert_close(
                    resumed.levels[name][version : version + 1], level, atol=1e-4, rtol=1e-3
                )
        assert len(case.detector.candidates(resumed, 2).scores)


def test_wrong_layers_and_maps_are_refused(case: Case) -> None:
    detector, forward = case.detector, case.forward
    with pytest.raises(ValueError, match="layer is one of level"):
        detector.resume(forward, 0, "roi", case.maps("level"))
    with pytest.raises(ValueError, match="shapes of layer 'layer3'"):
        detector.resume(forward, 0, "layer3", case.maps("layer2"))
    with pytest.raises(ValueError, match="keep=True"):
        detector.resume(detector.forward(forward.batch), 0, "level", case.maps("level"))
