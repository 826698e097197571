"""The Detector contract, held by every family and architecture alike."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from builders import LABELS, random_image
from family_parts import DETECTORS, in_double
from reference_parts import double_precision
from whybox.detectors.base import Candidates, Forward, Outputs, PostProcessing, Target, WhiteBoxDetector
from whybox.methods.base import Map, scalar
from whybox.methods.odam import odam_maps

HEIGHT, WIDTH = 128, 160


@pytest.fixture(scope="module", params=list(DETECTORS))
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WhiteBoxDetector:
    return DETECTORS[request.param](tmp_path_factory.mktemp("detector") / "model")


def network(detector: WhiteBoxDetector) -> nn.Module:
    model: nn.Module = detector.model  # type: ignore[attr-defined]
    return model


def seen(detector: WhiteBoxDetector, *, keep: bool = True) -> tuple[Forward, Candidates]:
    ((_, batch),) = detector.prepare([random_image(HEIGHT, WIDTH)])
    forward = detector.forward(batch, keep=keep)
    return forward, detector.candidates(forward, 0)


def chosen(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """The two candidates of the highest scores of each group, and their classes."""
    best = candidates.scores.amax(1)
    rows = []
    for group in candidates.groups.unique().tolist():
        (members,) = torch.where(candidates.groups == group)
        rows.append(members[best[members].topk(min(2, len(members))).indices])
    picks = torch.cat(rows)
    return picks, candidates.scores[picks].argmax(1)


class TestDetecting:
    def test_detections_point_to_their_candidates(self, detector: WhiteBoxDetector) -> None:
        forward, candidates = seen(detector, keep=False)
        frame = forward.batch.frames[0]
        found = detector.postprocess(candidates, frame, replace(detector.defaults, score_threshold=0.05))
        assert len(found) > 0
        rows = torch.arange(len(found))
        assert torch.equal(candidates.scores[found.candidates], found.class_scores)
        assert torch.equal(found.class_scores[rows, found.labels], found.scores)
        assert bool((found.scores[:-1] >= found.scores[1:]).all())
        boxes = frame.to_image(candidates.boxes_of(found.candidates, found.labels))
        limits = torch.tensor([WIDTH, HEIGHT] * 2)
        torch.testing.assert_close(found.boxes, boxes.clamp(min=0).minimum(limits), atol=1e-3, rtol=0)

    def test_what_is_computed_less_is_the_same(self, detector: WhiteBoxDetector) -> None:
        forward, candidates = seen(detector, keep=False)
        settings = PostProcessing(0.05, 10)
        short = detector.detections(forward, 0, settings)
        whole = detector.postprocess(candidates, forward.batch.frames[0], settings)
        assert torch.equal(short.labels, whole.labels)
        torch.testing.assert_close(short.boxes, whole.boxes)
        torch.testing.assert_close(short.scores, whole.scores)

    def test_a_batch_of_mixed_sizes_answers_as_each_alone(self, detector: WhiteBoxDetector) -> None:
        images = [
            random_image(128, 160, seed=1),
            random_image(96, 200, seed=2),
            random_image(128, 160, seed=3),
        ]
        assert sorted(i for positions, _ in detector.prepare(images) for i in positions) == [0, 1, 2]
        together = detector.detect(images)
        for image, found in zip(images, together, strict=True):
            alone = detector.detect([image])[0]
            assert torch.equal(alone.labels, found.labels)
            torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-2, rtol=0)
            torch.testing.assert_close(alone.scores, found.scores, atol=1e-5, rtol=0)

    def test_two_runs_agree(self, detector: WhiteBoxDetector) -> None:
        first, second = (detector.detect([random_image()])[0] for _ in range(2))
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.scores, second.scores)

    def test_a_threshold_acts(self, detector: WhiteBoxDetector) -> None:
        image = random_image(HEIGHT, WIDTH)
        everything = detector.detect([image], PostProcessing(0.0, 1000, "none"))[0]
        assert len(everything) > 2
        threshold = float(everything.scores.unique(sorted=True)[-2])
        strict = detector.detect([image], PostProcessing(threshold, 1000, "none"))[0]
        assert 0 < len(strict) < len(everything)
        assert bool((strict.scores > threshold).all())

    @pytest.mark.parametrize(
        "wrong", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3), torch.zeros(0, 8, 3).byte()]
    )
    def test_pictures_of_another_form_are_refused(self, detector: WhiteBoxDetector, wrong: Tensor) -> None:
        with pytest.raises(ValueError, match=r"images\[0\]: expected uint8 \(H, W, 3\)"):
            detector.prepare([wrong])

    def test_boxes_go_to_the_network_and_back(self, detector: WhiteBoxDetector) -> None:
        ((_, batch),) = detector.prepare([random_image(300, 500)])
        frame = batch.frames[0]
        assert (frame.width, frame.height) == (500, 300)
        assert frame.network_width <= batch.pixels.shape[3]
        assert frame.network_height <= batch.pixels.shape[2]
        boxes = torch.tensor([[0.0, 0.0, 500.0, 300.0], [12.5, 3.25, 99.0, 300.0]])
        placed = frame.to_network(boxes)
        assert placed[0, 2:].tolist() == [frame.network_width, frame.network_height]
        torch.testing.assert_close(frame.to_image(placed), boxes, atol=1e-3, rtol=0)

    def test_a_picture_in_the_making_is_prepared_as_a_finished_one(self, detector: WhiteBoxDetector) -> None:
        if not detector.stages:
            pytest.skip("cannot be inverted")
        image = random_image(HEIGHT, WIDTH)
        ((_, batch),) = detector.prepare([image])
        embedded = detector.embed(image.permute(2, 0, 1) / 255)
        assert embedded.frames == batch.frames
        # Resizing before or after rounding to bytes is all that may differ.
        span = float(batch.pixels.max() - batch.pixels.min())
        assert float((embedded.pixels - batch.pixels).abs().mean()) < 0.005 * span


class TestExplaining:
    def test_a_tap_needs_a_kept_pass_and_a_known_layer(self, detector: WhiteBoxDetector) -> None:
        one = torch.zeros(1, dtype=torch.int64)
        layer = next(iter(detector.layers))
        with pytest.raises(ValueError, match="keep=True"):
            detector.tap(seen(detector, keep=False)[0], 0, layer, one, one)
        with pytest.raises(ValueError, match="layer is one of"):
            detector.tap(seen(detector)[0], 0, "layer9", one, one)

    def test_every_layer_gives_finite_maps(self, detector: WhiteBoxDetector) -> None:
        forward, candidates = seen(detector)
        for layer in detector.layers:
            found = [
                a_map.values for row in maps(detector, forward, layer, *chosen(candidates)) for a_map in row
            ]
            assert all(values.ndim == 2 and bool(values.isfinite().all()) for values in found), layer
            assert any(bool(values.any()) for values in found), layer

    def test_class_maps_follow_the_class(self, detector: WhiteBoxDetector) -> None:
        forward, candidates = seen(detector)
        picks, labels = chosen(candidates)
        other = (labels + 1) % len(LABELS)
        for layer in detector.layers:
            pairs = zip(
                *(maps(detector, forward, layer, picks, which) for which in (labels, other)), strict=True
            )
            changed = [not torch.allclose(one[0].values, two[0].values) for one, two in pairs]
            # A stage beside the path to a level says nothing of what is found there (SSD's last ones).
            assert all(changed) if layer in ("level", "roi") else any(changed), layer

    def test_gradients_are_those_of_the_network(self, detector: WhiteBoxDetector) -> None:
        """A change of a layer's maps along a direction changes the outputs as the gradients say."""
        if set(detector.hold(seen(detector)[0], 0, torch.zeros(1, dtype=torch.int64))) != {"candidates"}:
            pytest.skip("proposals or queries are held: the family's own tests have a slow reference")
        with double_precision():
            self._compare(in_double(detector))

    def _compare(self, exact: WhiteBoxDetector) -> None:
        forward, candidates = seen(exact)
        picks, labels = chosen(candidates)
        names = ("class", "x1", "y2")
        targets = [scalar(name, exact.labels) for name in names]
        for layer in (name for name in exact.layers if can_resume(forward, name)):
            own = list(forward.levels.values()) if layer == "level" else [forward.stages[layer]]
            generator = torch.Generator().manual_seed(7)
            along = [torch.randn(x[:1].shape, generator=generator, dtype=x.dtype) for x in own]
            told = slopes(exact, forward, layer, picks, labels, targets, along)
            step = 1e-8  # small enough to cross hardly any kink of a ReLU
            ways = [
                outputs(
                    exact,
                    forward,
                    layer,
                    [x[:1] + sign * step * a for x, a in zip(own, along, strict=True)],
                    picks,
                    labels,
                    targets,
                )
                for sign in (1, -1)
            ]
            close = torch.isclose(told, (ways[0] - ways[1]) / (2 * step), rtol=1e-3, atol=1e-3)
            assert float(close.float().mean()) > 0.95, layer


class TestLeavingNoTrace:
    def test_outputs_and_weights_are_as_before(self, detector: WhiteBoxDetector) -> None:
        image = random_image(HEIGHT, WIDTH)
        before = detector.detect([image])[0]
        weights = {name: value.clone() for name, value in network(detector).state_dict().items()}
        forward, candidates = seen(detector)
        picks, labels = chosen(candidates)
        for layer in detector.layers:
            maps(detector, forward, layer, picks, labels)
        one = detector.tap(forward, 0, next(iter(detector.layers)), picks, labels)

        def fails(_: Outputs) -> Tensor:
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            list(one.windows([fails]))
        if detector.stages:
            picture = torch.rand(3, HEIGHT, WIDTH).requires_grad_()
            said = detector.stage_outputs(detector.embed(picture))
            (gradient,) = torch.autograd.grad(sum(stage.logits.sum() for stage in said), picture)
            assert float(gradient.abs().sum()) > 0
        after = detector.detect([image])[0]
        assert torch.equal(before.boxes, after.boxes)
        assert torch.equal(before.class_scores, after.class_scores)
        for name, value in network(detector).state_dict().items():
            assert torch.equal(value, weights[name]), name
        for name, parameter in network(detector).named_parameters():
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        for name, module in network(detector).named_modules():
            assert not module.training, name
            hooks = [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
            assert not hooks, name

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_it_moves_to_a_gpu_and_back(self, detector: WhiteBoxDetector) -> None:
        image = random_image(HEIGHT, WIDTH)
        here = detector.detect([image])[0]
        moved = copy.deepcopy(detector).to("cuda")
        assert moved.device.type == "cuda"
        there = moved.detect([image])[0].to(torch.device("cpu"))
        assert abs(len(here) - len(there)) <= 1 + len(here) // 20
        torch.testing.assert_close(here.scores[:3], there.scores[:3], atol=1e-3, rtol=0)
        forward, candidates = seen(moved)
        picks, labels = chosen(candidates)
        for layer in moved.layers:
            assert maps(moved, forward, layer, picks, labels)[0][0].values.device.type == "cuda"


def maps(
    detector: WhiteBoxDetector, forward: Forward, layer: str, picks: Tensor, labels: Tensor
) -> list[list[Map]]:
    targets = [scalar(name, detector.labels) for name in ("class", "x1")]
    taps = detector.taps(forward, 0, [layer], picks, labels)
    return odam_maps(taps, targets, forward.batch.frames[0], smoothing=0.0)[0]


def can_resume(forward: Forward, layer: str) -> bool:
    return layer == "level" or layer in forward.stages


def slopes(
    detector: WhiteBoxDetector,
    forward: Forward,
    layer: str,
    picks: Tensor,
    labels: Tensor,
    targets: Sequence[Target],
    along: Sequence[Tensor],
) -> Tensor:
    """Gradients of the targets by a layer, times a direction: (N, T)."""
    tap = detector.tap(forward, 0, layer, picks, labels, exact=True)
    found = torch.zeros(len(picks), len(targets), dtype=along[0].dtype)
    for window in tap.windows(targets):
        for position, pick in enumerate(window.picks.tolist()):
            level = int(tap.candidate_levels[pick]) if layer == "level" else 0
            cut = crop(along[level][0], window.origins[position], window.gradients.shape[-2:])
            found[pick] = (window.gradients[position] * cut).flatten(1).sum(1)
    return found


def crop(plane: Tensor, origin: Tensor, size: Sequence[int]) -> Tensor:
    """Cells (C, h, w) of a map from an origin that may lie outside; zero there."""
    (x, y), (height, width) = origin.tolist(), size
    cut = torch.zeros(len(plane), height, width, dtype=plane.dtype)
    rows = [row for row in range(height) if 0 <= y + row < plane.shape[1]]
    columns = [column for column in range(width) if 0 <= x + column < plane.shape[2]]
    for row in rows:
        for column in columns:
            cut[:, row, column] = plane[:, y + row, x + column]
    return cut


def outputs(
    detector: WhiteBoxDetector,
    forward: Forward,
    layer: str,
    changed: Sequence[Tensor],
    picks: Tensor,
    labels: Tensor,
    targets: Sequence[Target],
) -> Tensor:
    """The targets where the layer's maps are changed: (N, T)."""
    candidates = detector.candidates(detector.resume(forward, 0, layer, changed), 0)
    scores, boxes = candidates.scores[picks], candidates.boxes_of(picks, labels)
    said = Outputs(scores, boxes, labels, scores)
    return torch.stack([target(said) for target in targets], 1)
