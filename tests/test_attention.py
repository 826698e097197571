"""Attention maps: weights set by hand, points by arithmetic, and the library's own weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders import LABELS, random_image, random_model
from query_models import NAMES, processor_of, random_query_detector, random_query_model
from whybox.detectors.query_attention import samples_points, spread
from whybox.detectors.torchvision import wrap
from whybox.detectors.transformers import TransformersDetector
from whybox.methods import METHODS
from whybox.methods.base import Map, Question
from whybox_proto.errors import ContractError

METHOD = METHODS["attention"]


def explain(
    detector: TransformersDetector, image: Tensor, layer: str, *, count: int = 3, **params: int
) -> tuple[Question, list[Map]]:
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=True)
    settings = replace(detector.defaults, score_threshold=0.0, max_detections=count)
    found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], settings)
    asked = {"block": -1, "head": 0, **params}
    question = Question(forward, 0, found, ["class"], layer, asked)
    return question, [row[0] for row in METHOD.explain(detector, question)]


def test_points_lie_between_the_centres_of_cells() -> None:
    """One in the middle of a cell, one between four, one at the corner, one beyond the picture."""
    places = torch.tensor([[0.375, 0.25], [0.5, 0.5], [0.0, 0.0], [1.2, 0.5]])
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    made = spread(places[None, None], weights[None, None], (2, 4))[0, 0]
    expected = torch.tensor([[0.2, 0.4 + 0.075, 0.075, 0.0], [0.0, 0.075, 0.075, 0.0]])
    torch.testing.assert_close(made, expected)


def test_attention_set_by_hand() -> None:
    """Keys are 0 but for one cell's, so that a query takes e^s times as much from it as from any other."""
    model = random_query_model("detr")
    attention = model.model.decoder.layers[-1].encoder_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        attention.q_proj.bias.fill_(1.0)

    class Keys(nn.Module):
        """Keys of 1 at the fifth cell in both heads, 0 elsewhere."""

        def forward(self, x: Tensor) -> Tensor:
            keys = torch.zeros_like(x)
            keys[:, 4] = 1
            return keys

    attention.k_proj = Keys()
    detector = TransformersDetector(model, processor_of(model), LABELS)
    question, maps = explain(detector, random_image(50, 70), "decoder")
    cells = 6  # 64 x 89 pixels at stride 32
    # Scores are 8 of each head's channels over the root of 8.
    high = torch.tensor(8 / 8**0.5).exp()
    expected = torch.full((cells,), 1.0) / (high + cells - 1)
    expected[4] = high / (high + cells - 1)
    for made in maps:
        torch.testing.assert_close(made.values, expected.view(2, 3), atol=1e-6, rtol=1e-5)
        assert not made.signed
    assert len(maps) == len(question.detections)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_a_share_of_the_picture(name: str) -> None:
    detector = random_query_detector(name)
    assert METHOD.layers(detector) == ["decoder", "encoder"]
    hooks = [len(m._forward_hooks) for m in detector.model.modules()]
    for part in detector.attends:
        question, maps = explain(detector, random_image(50, 70), part)
        seen = detector.attention(question.forward, 0, part, question.detections.candidates)
        sums = seen.weights.sum((3, 4))
        assert bool((seen.weights >= 0).all())
        assert float(sums.max()) <= 1 + 1e-5
        if not any(map(samples_points, detector._blocks(part))):
            torch.testing.assert_close(sums, torch.ones_like(sums))
        assert float(sums.mean()) > 0.5
        assert maps[0].values.shape == seen.weights.shape[3:]
        _, mean = explain(detector, random_image(50, 70), part, block=0)
        torch.testing.assert_close(mean[0].values, seen.weights[0].mean((0, 1)))
        _, single = explain(detector, random_image(50, 70), part, block=1, head=2)
        torch.testing.assert_close(single[0].values, seen.weights[0, 0, 1])
    assert [len(m._forward_hooks) for m in detector.model.modules()] == hooks
    assert detector.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["detr", "conditional_detr"])
def test_they_are_the_weights_that_the_library_returns(name: str) -> None:
    detector = random_query_detector(name)
    question, maps = explain(detector, random_image(50, 70), "decoder")
    model = random_query_model(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        said = model(pixel_values=question.forward.batch.pixels, output_attentions=True)
    for candidate, made in zip(question.detections.candidates.tolist(), maps, strict=True):
        own = said.cross_attentions[-1][0, :, candidate].mean(0)
        torch.testing.assert_close(made.values.flatten(), own, atol=1e-6, rtol=1e-4)
    _, maps = explain(detector, random_image(50, 70), "encoder", block=1, count=1)
    (box,) = detector.candidates(question.forward, 0).boxes[question.detections.candidates[:1]].tolist()
    grids = detector.attention(question.forward, 0, "encoder", question.detections.candidates[:1]).grids
    x = int(((box[0] + box[2]) / 2 - float(grids.offsets[0, 0])) // float(grids.cells[0, 0]))
    y = int(((box[1] + box[3]) / 2 - float(grids.offsets[0, 1])) // float(grids.cells[0, 1]))
    columns, rows = grids.sizes[0].tolist()
    cell = min(max(y, 0), rows - 1) * columns + min(max(x, 0), columns - 1)
    own = said.encoder_attentions[0][0, :, cell].mean(0)
    torch.testing.assert_close(maps[0].values.flatten(), own, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["deformable_detr", "deformable_detr_two_stage", "rt_detr", "rt_detr_v2", "d_fine"]
)
def test_sampled_points_are_those_that_the_library_samples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `grid_sample` reads, seen from outside: the same places, level by level."""
    from whybox.detectors import transformers as module

    detector = random_query_detector(name)
    read: list[Tensor] = []
    places: list[Tensor] = []
    plain = torch.nn.functional.grid_sample
    own = module.sampled_points

    def reading(values: Tensor, grid: Tensor, **settings: Any) -> Tensor:
        read.append(grid)
        return plain(values, grid, **settings)

    def sampled(*given: Any) -> tuple[Tensor, Tensor]:
        made = own(*given)
        places.append(made[0])
        return made

    ((_, batch),) = detector.prepare([random_image(50, 70)])
    forward = detector.forward(batch, keep=True)
    monkeypatch.setattr(torch.nn.functional, "grid_sample", reading)
    monkeypatch.setattr(module, "sampled_points", sampled)
    count = len(detector.candidates(forward, 0).scores)
    detector.attention(forward, 0, "decoder", torch.arange(count))
    levels = detector.model.config.num_feature_levels
    last = read[-levels:]  # each (H, Q, P / L, 2), from -1 to 1
    seen = torch.cat([(grid + 1) / 2 for grid in last], 2).transpose(0, 1)
    torch.testing.assert_close(places[-1], seen, atol=1e-5, rtol=1e-5)


def test_detectors_without_attention_are_left_alone() -> None:
    plain = wrap(random_model("fcos"), LABELS, background=True)
    assert METHOD.layers(plain) is None
    ((_, batch),) = plain.prepare([random_image()])
    with pytest.raises(NotImplementedError, match="no attention"):
        plain.attention(plain.forward(batch, keep=True), 0, "decoder", torch.tensor([0]))


@pytest.mark.parametrize(("params", "words"), [({"block": 3}, "at most 2"), ({"head": 9}, "at most 2")])
def test_blocks_and_heads_that_are_not_there(params: dict[str, int], words: str) -> None:
    (name,) = params
    with pytest.raises(ContractError) as refused:
        explain(random_query_detector("detr"), random_image(50, 70), "decoder", **params)
    assert refused.value.field == f"params.{name}"
    assert refused.value.expected == words
