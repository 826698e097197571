"""The transformers family: agreement with the library, exact gradients, and checkpoints that do not fit."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from builders import LABELS, encoded, random_image
from query_models import (
    FIXED,
    NAMES,
    SHORT,
    config_of,
    processor_of,
    random_query_detector,
    random_query_model,
    transformers,
    write_checkpoint,
)
from reference_parts import double_precision
from slow_reference import scalar_of, smooth
from whybox.archives import build
from whybox.detectors.base import Detections
from whybox.detectors.registry import load_detector, pack_detector
from whybox.detectors.transformers import KINDS, TransformersDetector, written_out
from whybox.detectors.transformers_checkpoint import own_backbone
from whybox.engine import Engine
from whybox.methods import METHODS
from whybox.methods.base import Question, scalar
from whybox.methods.odam import odam_maps
from whybox.recipe import Recipe, RecipeError, read_recipe

SMALL = (50, 70)
"""(H, W) of pictures that are resized to 64 x 89, or to 64 x 64."""

TARGETS = (("class", "score"), ("class:gamma", "score"), ("class", "logit"), ("x1", "score"), ("y2", "score"))


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _in_order(found: Any) -> list[int]:
    """Best score first; those that score alike by class and box."""
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    keys = [(-round(score, 3), label, [round(side, 1) for side in box]) for score, label, box in rows]
    return sorted(range(len(keys)), key=keys.__getitem__)


class TestDetections:
    """What the library's own processor, model and post-processing say."""

    @pytest.mark.parametrize("size", [SMALL, (90, 40), (64, 96)])
    def test_they_are_the_librarys(self, name: str, size: tuple[int, int]) -> None:
        model = random_query_model(name)
        processor = processor_of(model)
        image = random_image(*size)
        given = processor(
            images=[image.permute(2, 0, 1)], input_data_format="channels_first", return_tensors="pt"
        )
        with torch.no_grad():
            said = model(**given)
        detector = TransformersDetector(model, processor, LABELS)
        for threshold in (0.5, 0.2):
            (wanted,) = processor.post_process_object_detection(said, threshold, target_sizes=[size])
            settings = replace(detector.defaults, score_threshold=threshold)
            (found,) = detector.detect([image], settings)
            assert len(found) == len(wanted["scores"])
            # As everywhere in whybox, boxes end where the picture does.
            height, width = size
            boxes = wanted["boxes"].clamp(min=0).minimum(torch.tensor([width, height] * 2))
            own, theirs = _in_order(found), _in_order(SimpleNamespace(**{**wanted, "boxes": boxes}))
            torch.testing.assert_close(found.scores[own], wanted["scores"][theirs], atol=1e-4, rtol=0)
            torch.testing.assert_close(found.boxes[own], boxes[theirs], atol=1e-4, rtol=0)
            assert found.labels[own].tolist() == wanted["labels"][theirs].tolist()
            assert bool((found.scores.diff() <= 0).all())
        assert len(found) > 2, "there must be something to compare"

    def test_pictures_of_a_batch_do_not_see_each_other(self, name: str) -> None:
        detector = random_query_detector(name)
        images = [random_image(*size, seed=i) for i, size in enumerate([SMALL, (90, 40), SMALL])]
        for image, found in zip(images, detector.detect(images), strict=True):
            (alone,) = detector.detect([image])
            torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-3, rtol=0)

    def test_frames_have_an_inverse_and_sizes_are_the_librarys(self, name: str) -> None:
        detector = random_query_detector(name)
        ((_, batch),) = detector.prepare([random_image(*SMALL)])
        frame = batch.frames[0]
        if KINDS[detector.model.config.model_type].processor != "RTDetrImageProcessor":
            assert (frame.network_height, frame.network_width) == (SHORT, 89)
        boxes = torch.tensor([[3.0, 4.0, 60.0, 41.0]])
        torch.testing.assert_close(frame.to_image(frame.to_network(boxes)), boxes)

    def test_a_picture_in_the_making_is_prepared_alike(self, name: str) -> None:
        detector = random_query_detector(name)
        image = random_image(*SMALL)
        ((_, batch),) = detector.prepare([image])
        embedded = detector.embed(image.permute(2, 0, 1).float() / 255)
        assert embedded.frames == batch.frames
        step = 1 / 255 / min(detector.processor.image_std or [1])
        # The library rounds to whole grey values, after resizing along each axis.
        torch.testing.assert_close(embedded.pixels, batch.pixels, atol=1.1 * step, rtol=0)


def test_an_unused_first_class_has_no_label() -> None:
    model = random_query_model("detr")
    plain = TransformersDetector(model, processor_of(model), LABELS)
    image = random_image(*SMALL)
    ((_, batch),) = plain.prepare([image])
    every = plain.candidates(plain.forward(batch), 0)
    without = TransformersDetector(model, processor_of(model), LABELS[1:], background=True)
    forward = without.forward(batch, keep=True)
    torch.testing.assert_close(without.candidates(forward, 0).scores, every.scores[:, 1:])
    (said,) = without.stage_outputs(without.embed(image.permute(2, 0, 1).float() / 255))
    assert said.softmax
    close = {"atol": 0.05, "rtol": 0.0}  # the picture is not rounded on this way
    torch.testing.assert_close(said.scores(), every.scores[:, 1:], **close)


def test_anchors_of_one_size_are_made_for_any() -> None:
    config = config_of("rt_detr")
    state = random_query_model("rt_detr").state_dict()
    config.anchor_image_size = [FIXED, FIXED]
    model = transformers.RTDetrForObjectDetection(config)
    model.load_state_dict(state, strict=False)  # its own anchors are not in it
    detector = TransformersDetector(model.eval(), processor_of(model), LABELS)
    image = random_image(*SMALL)
    (found,), (own,) = detector.detect([image]), random_query_detector("rt_detr").detect([image])
    torch.testing.assert_close(found.boxes, own.boxes)
    detector.forward(replace(detector.prepare([image])[0][1], pixels=torch.zeros(1, 3, 96, 96)))


def with_queries(name: str, count: int, side: int) -> TransformersDetector:
    """A detector with so many queries, taken from the cells of pictures of so many pixels."""
    config = config_of(name)
    config.num_queries = config.two_stage_num_proposals = count
    torch.manual_seed(0)
    model = getattr(transformers, KINDS[config.model_type].model)(config)
    processor = processor_of(model)
    processor.size = type(processor.size)(height=side, width=side)
    return TransformersDetector(model, processor, LABELS)


@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2", "d_fine", "deformable_detr_two_stage"])
def test_more_queries_than_a_small_picture_has_cells(name: str) -> None:
    detector = with_queries(name, 400, 192)
    assert detector.layers == random_query_detector(name).layers
    ((_, batch),) = detector.prepare([random_image(*SMALL)])
    assert len(detector.candidates(detector.forward(batch), 0).boxes) == 400
    with pytest.raises(ValueError, match=r"queries: expected at most \d{5}, the cells .*; got 30000"):
        with_queries(name, 30_000, 192)


@pytest.mark.parametrize("size", [(50, 10), (10, 50), (30, 30)])
def test_pictures_that_would_vanish_between_two_limits(size: tuple[int, int]) -> None:
    model = random_query_model("detr")
    processor = transformers.DetrImageProcessor(size={"max_height": size[0], "max_width": size[1]})
    detector = TransformersDetector(model, processor, LABELS)
    assert detector.max_aspect == min(size) - 1
    for shape in ((1, detector.max_aspect), (detector.max_aspect, 1), (7, 7 * detector.max_aspect)):
        assert len(detector.prepare([random_image(*shape)])) == 1
    thin = (1, min(size) + 2) if size[1] == min(size) else (min(size) + 2, 1)
    with pytest.raises(ValueError, match=r"Got SizeDict\((height|.*width)=0"):
        detector.prepare([random_image(*thin)])


class Seen:
    """A detector, in double precision, and its pass over one picture."""

    def __init__(self, name: str) -> None:
        self.detector = random_query_detector(name)
        ((_, batch),) = self.detector.prepare([random_image(*SMALL)])
        self.batch = batch
        self.forward = self.detector.forward(batch, keep=True)
        self.candidates = torch.tensor([0, 2, 6])
        self.labels = torch.tensor([0, 1, 3])
        self.known: dict[str, tuple[Tensor, dict[tuple[int, str, str], Tensor]]] = {}

    def reference(self, layer: str) -> tuple[Tensor, dict[tuple[int, str, str], Tensor]]:
        """What `_reference` finds, once."""
        if layer not in self.known:
            self.known[layer] = self._reference(layer)
        return self.known[layer]

    def _reference(self, layer: str) -> tuple[Tensor, dict[tuple[int, str, str], Tensor]]:
        """The layer's map (C, h, w), and gradients by (pick, target, score): one backward pass for each.

        The library runs from the pixels, with hooks in place of the layer's own outputs. It looks at the
        picture twice: of a single one, some gradients of its batch norms would be wrong (see
        `TransformersDetector._differentiable`, and `test_gradients_of_batch_norms`).
        """
        detector = self.detector
        model, leaf = detector.model, None

        def take(_module: object, _given: object, made: Any) -> Any:
            nonlocal leaf
            if layer.startswith("memory"):
                memory = made.last_hidden_state
                leaf = [m.detach().requires_grad_() for m in memory] if isinstance(memory, list) else None
                if leaf is None:
                    leaf = memory.detach().requires_grad_()
                made.last_hidden_state = leaf
                return made
            leaf = made.detach().requires_grad_()
            return leaf

        body = model.model.backbone.model
        place = model.model.encoder if layer.startswith("memory") else body.encoder.stages[int(layer[-1]) - 1]
        handle = place.register_forward_hook(take)
        with torch.enable_grad():
            said = model(pixel_values=self.batch.pixels.repeat(2, 1, 1, 1))
        handle.remove()
        softmax = detector.kind.softmax
        logits = said.logits[0]
        scores = logits.softmax(1)[:, :-1] if softmax else logits.sigmoid()
        height, width = self.batch.pixels.shape[2:]
        centre, size = said.pred_boxes[0].split(2, 1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor([width, height] * 2)
        gradients = {}
        for pick, (candidate, label) in enumerate(zip(self.candidates, self.labels, strict=True)):
            for target, score in TARGETS:
                values = logits if score == "logit" else scores
                value = scalar_of(target, values, boxes, int(candidate), int(label))
                leaves = leaf if isinstance(leaf, list) else [leaf]
                own = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
                gradients[pick, target, score] = self._map(layer, list(own))
        return self._map(layer, leaf if isinstance(leaf, list) else [leaf]).detach(), gradients

    def _map(self, layer: str, values: list[Tensor]) -> Tensor:
        """A stage's map, or that of one level of the memory: (C, h, w)."""
        if not layer.startswith("memory"):
            return values[0][0]
        position = int(layer.removeprefix("memory") or 1) - 1
        if len(values) > 1:
            return values[position][0]
        sizes = [m.shape[2:] for m in self.forward.levels.values()]
        parts = values[0][0].split([h * w for h, w in sizes])
        return parts[position].T.unflatten(1, tuple(sizes[position]))


@pytest.fixture(scope="module")
def seen(name: str) -> Iterator[Seen]:
    with double_precision():
        yield Seen(name)


class TestTaps:
    """Gradients are those of plain backward passes through the library's own model."""

    @pytest.fixture(autouse=True)
    def _double(self) -> Iterator[None]:
        with double_precision():
            yield

    def test_maps_equal_the_slow_reference(self, seen: Seen) -> None:
        detector, frame = seen.detector, seen.batch.frames[0]
        layers = list(detector.layers)
        targets = [scalar(target, LABELS, score=score) for target, score in TARGETS]
        taps = detector.taps(seen.forward, 0, layers, seen.candidates, seen.labels)
        for smoothing in (0.0, 0.2):
            together = odam_maps(taps, targets, frame, smoothing=smoothing, sign="signed")
            for layer, rows, tap in zip(layers, together, taps.taps, strict=True):
                alone_taps = detector.taps(seen.forward, 0, [layer], seen.candidates, seen.labels)
                (alone,) = odam_maps(alone_taps, targets, frame, smoothing=smoothing, sign="signed")
                activation, gradients = seen.reference(layer)
                shown = 0
                for pick in range(len(seen.candidates)):
                    spans = (tap.boxes[pick, 2:] - tap.boxes[pick, :2]).clamp(min=0)
                    sigmas = smoothing * torch.minimum(spans / tap.grids.cells[pick], tap.grids.sizes[pick])
                    for column, (target, score) in enumerate(TARGETS):
                        gradient = gradients[pick, target, score]
                        if smoothing:
                            gradient = smooth(gradient, float(sigmas[0]), float(sigmas[1]))
                        expected = (gradient * activation).sum(0).float()
                        close = 1e-5 * float(expected.abs().max()) + 1e-30
                        for made in (rows[pick][column], alone[pick][column]):
                            assert made.values.shape == expected.shape
                            assert float((made.values - expected).abs().max()) <= close, (layer, target)
                        shown += int(expected.any())
                assert shown >= len(TARGETS), layer

    def test_windows_hold_the_gradients_themselves(self, seen: Seen) -> None:
        targets = [scalar(target, LABELS, score=score) for target, score in TARGETS]
        for layer in seen.detector.layers:
            activation, gradients = seen.reference(layer)
            tap = seen.detector.tap(seen.forward, 0, layer, seen.candidates, seen.labels)
            torch.testing.assert_close(tap.whole(1), activation)
            for window in tap.windows(targets, margin=2):
                assert not window.origins.any()
                for row, pick in enumerate(window.picks.tolist()):
                    torch.testing.assert_close(window.activations[row], activation)
                    for column, (target, score) in enumerate(TARGETS):
                        expected = gradients[pick, target, score]
                        torch.testing.assert_close(window.gradients[row, column], expected)

    def test_small_parts_make_the_same_maps(self, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = next(iter(seen.detector.layers))
        targets = [scalar("class", LABELS)]

        def heats() -> list[Any]:
            tap = seen.detector.tap(seen.forward, 0, layer, seen.candidates, seen.labels)
            return list(tap.heat(targets, torch.full((3, 2), 0.7)))

        monkeypatch.setattr("whybox.detectors.query_taps.PASSES", 1)
        (whole,) = heats()
        monkeypatch.setattr("whybox.detectors.query_taps.GRAPH_BYTES", {"cpu": 1})
        parts = heats()
        assert len(parts) == len(seen.candidates)
        torch.testing.assert_close(torch.cat([part.values for part in parts]), whole.values)

    def test_another_class_has_another_map(self, seen: Seen) -> None:
        layer = next(iter(seen.detector.layers))
        tap = seen.detector.taps(seen.forward, 0, [layer], seen.candidates, seen.labels)
        targets = [scalar(f"class:{label}", LABELS) for label in LABELS[:2]]
        ((row, *_),) = odam_maps(tap, targets, seen.batch.frames[0], smoothing=0.0, sign="signed")
        assert not torch.allclose(row[0].values, row[1].values)

    def test_running_on_from_a_layer_gives_the_same_outputs(self, seen: Seen) -> None:
        for layer in seen.detector.layers:
            own = {**seen.forward.stages, **seen.forward.levels}[layer]
            resumed = seen.detector.resume(seen.forward, 0, layer, [torch.cat([own, -own])])
            for what in ("logits", "boxes"):
                torch.testing.assert_close(resumed.extra[what][0], seen.forward.extra[what][0])
            assert not torch.allclose(resumed.extra["logits"][1], seen.forward.extra["logits"][0])

    def test_gradients_by_the_pixels(self, seen: Seen) -> None:
        """A trace with held queries: their outputs, and the gradient that the library's own pass has."""
        detector = seen.detector
        held = detector.hold(seen.forward, 0, seen.candidates)
        trace = detector.trace(seen.batch, held)
        assert trace.outputs is not None
        said = trace.outputs(0, held["candidates"], seen.labels)
        torch.testing.assert_close(said.scores, detector.candidates(seen.forward, 0).scores[seen.candidates])
        value = said.scores[0, 1] + said.sides[2, 0]
        (gradient,) = torch.autograd.grad(value, trace.pixels)
        pixels = seen.batch.pixels.clone().requires_grad_()
        with torch.enable_grad():
            raw = detector.model(pixel_values=pixels.repeat(2, 1, 1, 1))
            logits, box = raw.logits[0, 0], raw.pred_boxes[0, int(seen.candidates[2])]
            score = logits.softmax(0)[1] if detector.kind.softmax else logits[1].sigmoid()
            expected = score + (box[0] - box[2] / 2) * pixels.shape[3]
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, pixels)[0])

    def test_held_queries_stay_where_they_are(self, seen: Seen) -> None:
        """In a changed picture another choice of queries would put others in their places."""
        held = seen.detector.hold(seen.forward, 0, seen.candidates)
        changed = replace(seen.batch, pixels=seen.batch.pixels.flip(3))
        first = seen.detector.trace(changed, held)
        again = seen.detector.trace(changed, held)
        assert torch.equal(first.forward.extra["logits"], again.forward.extra["logits"])
        if "queries" in held:
            own = seen.detector.trace(changed, {})
            assert not torch.equal(own.forward.extra["queries"][0], held["queries"])
            assert torch.equal(first.forward.extra["queries"][0], held["queries"])
        else:
            assert seen.forward.extra["queries"] is None


@pytest.mark.parametrize("copies", [1, 2])
def test_gradients_of_batch_norms(copies: int) -> None:
    """Written out they are right for every layout of the gradient in memory."""
    norm = torch.nn.BatchNorm2d(6).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert value is not None
        value.data = torch.rand(6, generator=random) + 0.5
    assert norm.running_var is not None
    x = torch.randn(copies, 6, 4, 5, generator=random, requires_grad=True)
    made = written_out(norm)(x)
    torch.testing.assert_close(made, norm(x))
    tokens = torch.randn(copies, 20, 6, generator=random).transpose(1, 2).unflatten(2, (4, 5))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    for gradient in (tokens, tokens.contiguous()):
        (pulled,) = torch.autograd.grad(made, x, gradient, retain_graph=True)
        torch.testing.assert_close(pulled, gradient * scale[:, None, None])


def question(detector: TransformersDetector, image: Tensor, method: str, **fields: Any) -> Question:
    """Ask a method about the best two detections of a picture, with its default parameters."""
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=True)
    settings = replace(detector.defaults, score_threshold=0.1, max_detections=2)
    found: Detections = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], settings)
    chosen = METHODS[method]
    params = {param.name: param.default for param in chosen.params} | fields.pop("params", {})
    layers = chosen.layers(detector)
    asked = {"targets": ["class"], "layer": (layers or [""])[0], "picture": image, **fields}
    return Question(forward=forward, image=0, detections=found, params=params, **asked)


def hooks_of(model: torch.nn.Module) -> tuple[int, int]:
    """How many hooks there are, and how many modules answer with something else."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return hooks, sum("forward" in m.__dict__ for m in model.modules())


class TestMethods:
    """Every method that the description names works, and leaves no trace."""

    @pytest.mark.parametrize("method", [m for m in METHODS if m != "class_slices"])
    def test_a_map_for_each_detection(self, name: str, method: str) -> None:
        detector = random_query_detector(name)
        image = random_image(*SMALL)
        (before,) = detector.detect([image])
        hooks = hooks_of(detector.model)
        few = {"samples": 8} if "samples" in {p.name for p in METHODS[method].params} else {}
        for layer in METHODS[method].layers(detector) or [""]:
            asked = question(detector, image, method, params=few, layer=layer, max_side=24)
            rows = METHODS[method].explain(detector, asked)
            again = METHODS[method].explain(detector, asked)
            assert len(rows) == len(asked.detections) == 2
            for row, same in zip(rows, again, strict=True):
                assert row[0].values.isfinite().all()
                assert torch.equal(row[0].values, same[0].values)
        (after,) = detector.detect([image])
        assert torch.equal(before.scores, after.scores)
        assert hooks_of(detector.model) == hooks
        assert detector.model.config._attn_implementation == "sdpa"

    def test_nothing_stays_behind_after_a_failure(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        detector = random_query_detector(name)
        asked = question(detector, random_image(*SMALL), "odam")
        hooks = hooks_of(detector.model)

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(detector.model.model.decoder, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            METHODS["odam"].explain(detector, asked)
        monkeypatch.undo()
        assert hooks_of(detector.model) == hooks
        assert detector.model.config._attn_implementation == "sdpa"

    def test_dense_heads_alone_have_class_slices(self, name: str) -> None:
        assert METHODS["class_slices"].layers(random_query_detector(name)) is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The recipe of a checkpoint in a folder of its own."""

    def write(name: str = "detr", **fields: object) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), name, **fields)

    return write


class TestCheckpoints:
    """A folder as the library writes it, and what is packed of it."""

    def test_loaded_and_packed_it_is_the_same_model(
        self, name: str, checkpoint: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = checkpoint(name)
        recipe, folder = read_recipe(path), path.parent / "checkpoint"
        image = random_image(*SMALL)
        packed, weights = pack_detector(recipe, folder, tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
        wanted = random_query_detector(name)
        for loaded in (load_detector(recipe, folder), load_detector(packed, weights)):
            (found,), (own,) = loaded.detect([image]), wanted.detect([image])
            torch.testing.assert_close(found.scores, own.scores)
            torch.testing.assert_close(found.boxes, own.boxes, atol=1e-4, rtol=0)

    def test_an_archive_holds_safetensors_and_both_configurations(
        self, checkpoint: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = checkpoint("rt_detr", score_threshold=0.1)
        archive = build(path, tmp_path)
        with zipfile.ZipFile(archive) as files:
            names = [n for n in files.namelist() if not n.startswith(("whybox", "MAR-INF"))]
            assert sorted(names) == ["model-config.yaml", "recipe.yaml", "weights.safetensors"]
            files.extractall(tmp_path / "model")
        recipe = read_recipe(tmp_path / "model" / "recipe.yaml")
        assert recipe.options["config"]["model_type"] == "rt_detr"
        engine = Engine.load(recipe, tmp_path / "model" / "weights.safetensors")
        assert {m.name for m in engine.model.methods} == set(METHODS) - {"class_slices"}
        assert {layer.kind for layer in engine.model.layers} == {"stage", "memory"}
        assert engine.model.default_nms == "none"
        from whybox_proto.v1 import worker_pb2

        request = worker_pb2.WorkerRequest()
        request.explain.image = encoded(random_image(*SMALL))
        request.explain.targets.extend(["class", "x1"])
        (reply,) = engine.answer([request])
        assert reply.WhichOneof("result") == "explain", reply.error
        assert len(reply.explain.heat_maps) == 2 * len(reply.explain.detections) > 0

    def test_weights_in_parts_and_in_a_pickle(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint()
        recipe, folder = read_recipe(path), path.parent / "checkpoint"
        state = safetensors.torch.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
        whole = load_detector(recipe, folder)
        (folder / "pytorch_model.bin").unlink()
        parts = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
        for part in set(parts.values()):
            safetensors.torch.save_file({k: state[k] for k, v in parts.items() if v == part}, folder / part)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
        image = random_image(*SMALL)
        (found,), (own,) = load_detector(recipe, folder).detect([image]), whole.detect([image])
        assert torch.equal(found.scores, own.scores)

    def test_a_backbone_under_timms_names(self, checkpoint: Callable[..., Path]) -> None:
        """DETR's published checkpoints: the same ResNet, named as timm names it."""
        torch.manual_seed(0)
        backbone = transformers.ResNetConfig(
            depths=[2, 2, 2, 2],
            hidden_sizes=[64, 128, 256, 512],
            layer_type="basic",
            out_features=["stage4"],
        )
        small = {"d_model": 16, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_queries": 5}
        config = transformers.DetrConfig(
            backbone_config=backbone, encoder_layers=1, decoder_layers=1, num_labels=4, **small
        )
        model = transformers.DetrForObjectDetection(config).eval()
        path = checkpoint()
        folder = path.parent / "checkpoint"
        named = {
            **config.to_dict(),
            "backbone_config": None,
            "backbone": "resnet18",
            "use_timm_backbone": True,
        }
        named["architectures"] = ["DetrForObjectDetection"]
        (folder / "config.json").write_text(json.dumps(named, default=str))
        state = {timm_name(key): value.clone() for key, value in model.state_dict().items()}
        assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var" in state
        safetensors.torch.save_file(state, folder / "model.safetensors")
        loaded = load_detector(read_recipe(path), folder)
        assert isinstance(loaded, TransformersDetector)
        pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(pixels).logits, model(pixels).logits)


def timm_name(key: str) -> str:
    """The name that timm's ResNet gives a weight of the library's."""
    head, found, own = key.partition("backbone.model.")
    if not found:
        return key
    own = own.replace("embedder.embedder.convolution", "conv1").replace(
        "embedder.embedder.normalization", "bn1"
    )
    parts = own.split(".")
    if parts[:2] == ["encoder", "stages"]:
        place = f"layer{int(parts[2]) + 1}.{parts[4]}"
        if parts[5] == "shortcut":
            own = ".".join([place, "downsample", "01"[parts[6] == "normalization"], *parts[7:]])
        else:
            kind = {"convolution": "conv", "normalization": "bn"}[parts[7]]
            own = ".".join([place, f"{kind}{int(parts[6]) + 1}", *parts[8:]])
    return f"{head}backbone.conv_encoder.model.{own}"


class TestBadCheckpoints:
    """What does not fit is told when the archive is built, with what to do."""

    def refused(self, path: Path, words: str, weights: Path | None = None) -> None:
        with pytest.raises(RecipeError, match=words):
            build(path, path.parent / "store", weights)

    def test_labels_of_the_wrong_length(self, checkpoint: Callable[..., Path]) -> None:
        words = r"expected 4 names for this head; got 3 \(or 3 and background: true"
        self.refused(checkpoint(labels=list(LABELS[:3])), words)

    def test_labels_in_another_order_than_the_checkpoints(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint(labels=[LABELS[1], LABELS[0], *LABELS[2:]])
        self.edit(path, id2label={str(i): label for i, label in enumerate(LABELS)})
        words = (
            rf"labels: expected the order of id2label in .*config\.json, {', '.join(LABELS)}; got beta, alpha"
        )
        self.refused(path, words)
        path = checkpoint(labels=[LABELS[1], "another", *LABELS[2:]])
        self.edit(path, id2label={str(i): label for i, label in enumerate(LABELS)})
        assert build(path, path.parent / "store").is_file(), "other names are somebody's own"

    def test_pictures_that_are_padded_to_one_size(self, checkpoint: Callable[..., Path]) -> None:
        size = {"height": 480, "width": 640}
        path = checkpoint()
        self.edit(path, "preprocessor_config.json", do_pad=True, pad_size=size)
        words = (
            r"preprocessor_config\.json: pad_size: expected none, .*; got \{'height': 480, 'width': 640\}\."
        )
        self.refused(path, words)
        self.edit(path, "preprocessor_config.json", do_pad=False)
        assert build(path, path.parent / "store").is_file(), "nothing is padded"

    def test_another_architectures_checkpoint(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint("conditional_detr", architecture="detr")
        self.refused(path, r"of another architecture: expected DetrForObjectDetection \(detr\); got Cond")
        self.refused(checkpoint(architecture="yolos"), "architecture: expected one of detr, .*; got 'yolos'")

    def test_a_model_for_something_else(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint()
        self.edit(path, architectures=["DetrForSegmentation"])
        self.refused(path, "got DetrForSegmentation")

    def test_keys_that_do_not_fit(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint()
        file = path.parent / "checkpoint" / "model.safetensors"
        state = safetensors.torch.load_file(file)
        gone = "class_labels_classifier.weight"
        for words, changed in (
            (f"missing: {gone}", {k: v for k, v in state.items() if k != gone}),
            ("not in the model: odd", {**state, "odd": torch.zeros(1)}),
            (r"of another shape: class_.*\(3, 3\), expected \(5, 16\)", {**state, gone: torch.zeros(3, 3)}),
        ):
            safetensors.torch.save_file(changed, file)
            self.refused(path, words)

    def test_a_folder_without_weights(self, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
        path = checkpoint()
        (path.parent / "checkpoint" / "model.safetensors").unlink()
        self.refused(path, r"there are no weights; expected model\.safetensors or pytorch_model\.bin")
        self.refused(path, r"config\.json: there is no such file; the checkpoint's folder has", tmp_path)

    def test_code_is_never_run(self, checkpoint: Callable[..., Path]) -> None:
        for file in ("config.json", "preprocessor_config.json"):
            path = checkpoint()
            self.edit(path, file, auto_map={"AutoModel": "evil.Model"})
            self.refused(path, rf"{file} asks for code of its own \(auto_map\)")
        path = checkpoint()
        folder = path.parent / "checkpoint"
        (folder / "model.safetensors").unlink()
        torch.save({"model": Path}, folder / "pytorch_model.bin")
        self.refused(path, "cannot be read")

    def test_backbones_that_are_not_there(self, checkpoint: Callable[..., Path]) -> None:
        for words, fields in (
            ("got 'vit_huge'", {"backbone": "vit_huge", "use_timm_backbone": True}),
            ("got 'somebody/resnet'", {"backbone": "somebody/resnet", "use_timm_backbone": False}),
            (r"dilated backbone \(DC5\)", {"backbone": "resnet50", "dilation": True}),
        ):
            path = checkpoint()
            self.edit(path, backbone_config=None, **fields)
            self.refused(path, words)

    def test_configurations_that_make_no_sense(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint()
        self.edit(path, d_model="wide")
        self.refused(path, r"config\.json: the library cannot build this model")
        path = checkpoint()
        (path.parent / "checkpoint" / "config.json").write_text("{")
        self.refused(path, r"config\.json: cannot be read")
        self.refused(
            checkpoint(options={"depth": 3}), "options: expected config and preprocessor; got 'depth'"
        )
        path = checkpoint()
        self.edit(path, "preprocessor_config.json", size="large")
        self.refused(path, r"preprocessor_config\.json: the library cannot use it")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("resample", 99),
            ("rescale_factor", "x"),
            ("image_mean", [0.5, 0.5]),
            ("image_std", [0, 0, 0]),
            ("size", {"shortest_edge": 64}),
        ],
    )
    def test_pictures_that_cannot_be_prepared(
        self, field: str, value: object, checkpoint: Callable[..., Path]
    ) -> None:
        path = checkpoint()
        self.edit(path, "preprocessor_config.json", **{field: value})
        self.refused(path, r"detr: (the model fails on a picture|the pixels, .* are not finite)")
        assert not (path.parent / "store").exists()

    def test_networks_whose_parts_do_not_fit_each_other(self, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint("rt_detr")
        self.edit(path, encode_proj_layers=[7])
        self.refused(path, r"rt-detr: config\.json: the model fails on a picture: IndexError: list index")

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            (
                {
                    "backbone_config": {
                        "model_type": "timm_backbone",
                        "backbone": "resnet50",
                        "out_indices": 4,
                    }
                },
                "out_indices: expected a list of stages, 1 to 4; got 4",
            ),
            (
                {"backbone": "resnet50", "backbone_kwargs": {"out_indices": [True, "4"]}},
                r"out_indices: .*; got \[True, '4'\]",
            ),
            (
                {"backbone": "resnet50", "backbone_kwargs": [1]},
                "backbone_kwargs: expected a mapping; got list",
            ),
            ({"backbone_config": ["resnet"]}, "backbone_config: expected a mapping; got list"),
            (
                {"backbone": "resnet50", "num_feature_levels": "many"},
                "num_feature_levels: expected a whole number; got 'many'",
            ),
            ({"backbone": ["resnet50"]}, r"backbone: expected .*; got \['resnet50'\]"),
            ({"architectures": 4}, r"of another architecture: .*; got 4 \(detr\)"),
        ],
    )
    def test_fields_of_another_type(
        self, fields: dict[str, Any], words: str, checkpoint: Callable[..., Path]
    ) -> None:
        path = checkpoint()
        self.edit(path, **{"backbone_config": None, **fields})
        self.refused(path, words)

    @pytest.mark.parametrize(
        "own", ["layer1", "layerX.0.conv1.weight", "layer1.0.fc1.weight", "layer1.0.conv"]
    )
    def test_weights_that_timms_resnet_does_not_have(self, own: str, checkpoint: Callable[..., Path]) -> None:
        path = checkpoint()
        file = path.parent / "checkpoint" / "model.safetensors"
        self.edit(path, backbone_config=None, backbone="resnet18", hidden_sizes=None)
        config = own_backbone(json.loads((file.parent / "config.json").read_text()))[0]
        kind = transformers.DetrForObjectDetection
        state = kind(kind.config_class.from_dict(config)).state_dict()
        odd = f"backbone.conv_encoder.model.{own}"
        safetensors.torch.save_file({**state, odd: torch.zeros(1)}, file)
        self.refused(path, f"not in the model: .*{own}")

    def edit(self, path: Path, file: str = "config.json", **fields: Any) -> None:
        """Change some fields of one of the checkpoint's configurations."""
        whole = path.parent / "checkpoint" / file
        whole.write_text(json.dumps({**json.loads(whole.read_text()), **fields}))


QUANTISED = {"quant_method": "torchao", "quant_type": {"default": "int8"}}


class TestNothingIsLookedUp:
    """What a configuration names of other people's code is never loaded."""

    @pytest.fixture
    def reached(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The loaders of the library that were called."""
        called: list[str] = []

        def spy(where: str) -> None:
            def reach(*_: object, **__: object) -> None:
                called.append(where)
                raise ImportError(f"{where} was reached")

            monkeypatch.setattr(f"transformers.{where}", reach)

        spy("modeling_utils.lazy_import_flash_attention")
        spy("quantizers.auto.AutoHfQuantizer.merge_quantization_configs")
        return called

    @pytest.mark.parametrize(
        "fields", [{"attn_implementation": "owner/kernel"}, {"quantization_config": QUANTISED}]
    )
    def test_the_library_would(self, fields: dict[str, Any], reached: list[str]) -> None:
        """So that the others can fail."""
        kind = transformers.DetrForObjectDetection
        config = kind.config_class.from_dict({**config_of("detr").to_dict(), **fields})
        with pytest.raises(ImportError, match="was reached"):
            kind.from_pretrained(None, config=config, state_dict={}, local_files_only=True)
        assert len(reached) == 1

    @pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
    @pytest.mark.parametrize(
        "value", ["owner/kernel", {"": "owner/kernel", "backbone_config": "owner/kernel"}]
    )
    @pytest.mark.parametrize("deep", [False, True])
    def test_kernels(
        self, deep: bool, value: object, field: str, checkpoint: Callable[..., Path], reached: list[str]
    ) -> None:
        path = checkpoint()
        file = path.parent / "checkpoint" / "config.json"
        config = json.loads(file.read_text())
        (config["backbone_config"] if deep else config)[field] = value
        file.write_text(json.dumps(config))
        loaded = load_detector(read_recipe(path), file.parent)
        assert isinstance(loaded, TransformersDetector)
        assert loaded.model.config._attn_implementation == "sdpa"
        packed, _ = pack_detector(read_recipe(path), file.parent, path.parent)
        assert "owner" not in json.dumps(packed.options)
        assert reached == []

    @pytest.mark.parametrize("deep", [False, True])
    def test_quantised_weights(self, deep: bool, checkpoint: Callable[..., Path], reached: list[str]) -> None:
        path = checkpoint()
        file = path.parent / "checkpoint" / "config.json"
        config = json.loads(file.read_text())
        (config["backbone_config"] if deep else config)["quantization_config"] = QUANTISED
        file.write_text(json.dumps(config))
        with pytest.raises(RecipeError, match=r"config\.json: quantization_config: expected none; quantised"):
            build(path, path.parent / "store")
        assert reached == []


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of DetrForObjectDetection, .*; got SimpleNamespace"):
        TransformersDetector(SimpleNamespace(config=SimpleNamespace(model_type="vit")), None, LABELS)


def test_packing_keeps_the_recipe(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = checkpoint()
    recipe: Recipe = read_recipe(path)
    packed, _ = pack_detector(recipe, path.parent / "checkpoint", tmp_path)
    assert replace(packed, options={}) == replace(recipe, options={})
    assert yaml.safe_load(yaml.safe_dump(dict(packed.options))) == packed.options
