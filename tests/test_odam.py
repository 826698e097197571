"""ODAM against the slow reference, on every architecture and layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from builders import ARCHITECTURE_NAMES, LABELS
from reference_parts import Case, Seen, compare_odam, double_precision, paste_map
from whybox.detectors import taps as taps_module
from whybox.detectors.base import Detections, Taps
from whybox.methods import METHODS
from whybox.methods.base import SIDES, Question, normalise, scalar
from whybox.methods.fusing import fuse, fuse_layers
from whybox.methods.odam import SIGNS, odam_maps
from whybox_proto.errors import ContractError

SMOOTHING = 0.08


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


@pytest.fixture(scope="module", params=ARCHITECTURE_NAMES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with double_precision():
        yield Case(Seen(request.param))


@pytest.fixture(scope="module")
def fcos() -> Iterator[Case]:
    with double_precision():
        yield Case(Seen("fcos"))


@pytest.mark.parametrize("kind", ["level", "roi", "stem", "layer1", "layer2", "layer3", "layer4"])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_maps_equal_the_slow_reference(case: Case, kind: str, smoothing: float) -> None:
    if kind not in case.detector.layers:
        assert kind == "roi", "only region features are missing from one-stage detectors"
        return
    compare_odam(case, [kind], smoothing)


def test_wide_smoothing_equals_the_slow_reference(case: Case) -> None:
    """Where kernels are wider than the level."""
    compare_odam(case, ["level"], 0.9)


def test_layers_together_equal_the_slow_reference(case: Case) -> None:
    layers = ["layer3", "level", "layer2", *(["roi"] if "roi" in case.detector.layers else [])]
    compare_odam(case, layers, SMOOTHING)


@pytest.mark.parametrize("layers", [["level"], ["layer2"], ["layer3", "level"]])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_exact_maps_equal_the_slow_reference(fcos: Case, layers: list[str], smoothing: float) -> None:
    """GroupNorm's statistics differentiated as well: torchvision's own modules, nothing held."""
    compare_odam(fcos, layers, smoothing, exact=True)


@pytest.mark.parametrize("target", ["class", "x1"])
def test_an_exact_map_of_one_tower_alone(fcos: Case, target: str) -> None:
    """Neither a class's logit nor a side depends on both towers."""
    both, alone = (
        METHODS["odam"].explain(fcos.detector, _question(fcos, targets, exact=True, score="logit"))
        for targets in (("class", "x1"), (target,))
    )
    for row, (made,) in zip(both, alone, strict=True):
        torch.testing.assert_close(made.values, row[("class", "x1").index(target)].values)


@pytest.mark.parametrize(("layer", "memory"), [("layer2", 10_000), ("layer4+level", 14_000)])
def test_maps_beyond_the_memory_are_refused(fcos: Case, layer: str, memory: int) -> None:
    question = replace(_question(fcos, ("combined",), layer), memory=memory)
    with pytest.raises(ContractError) as caught:
        METHODS["odam"].explain(fcos.detector, question)
    assert (caught.value.type, caught.value.field) == ("response_too_large", "layer")


def test_exact_changes_nothing_without_group_norm(case: Case) -> None:
    if any(isinstance(module, nn.GroupNorm) for module in case.model.modules()):
        return
    rows, exact = (
        METHODS["odam"].explain(case.detector, _question(case, ("class", "x1"), exact=exact))
        for exact in (False, True)
    )
    for a, b in zip(rows, exact, strict=True):
        assert all(torch.equal(one.values, other.values) for one, other in zip(a, b, strict=True))


def test_the_head_is_gone_through_once_for_all_layers(fcos: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    pull_back = taps_module.pull_back
    monkeypatch.setattr(taps_module, "pull_back", lambda *args: calls.append(args[0]) or pull_back(*args))
    targets = [scalar("class", LABELS), scalar("x1", LABELS)]
    frame = fcos.forward.batch.frames[0]
    counts = []
    for layers in (["level"], ["level", "layer2", "layer3", "layer1"]):
        calls.clear()
        odam_maps(fcos.taps(*layers), targets, frame, smoothing=0.0)
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("layer", ["level", "layer2"])
def test_signs_are_made_of_one_signed_map(case: Case, layer: str) -> None:
    made = {
        sign: METHODS["odam"].explain(case.detector, _question(case, ("class", "y2"), layer, sign=sign))
        for sign in SIGNS
    }
    seen = torch.zeros(2)
    for pick, row in enumerate(made["signed"]):
        for position, signed in enumerate(row):
            values = signed.values
            expected = {
                "relu": values.clamp(min=0),
                "negated": (-values).clamp(min=0),
                "signed": values,
                "abs": values.abs(),
            }
            for sign, rows in made.items():
                assert torch.equal(rows[pick][position].values, expected[sign])
                assert rows[pick][position].signed == (sign == "signed")
            seen += torch.tensor([values.max() > 0, values.min() < 0])
    assert bool((seen > 0).all()), "both signs must occur"


def test_one_candidate_alone_has_the_same_maps(case: Case) -> None:
    """Neighbours in a batch change no map, beyond rounding."""
    targets = [scalar("class", LABELS)]
    frame = case.forward.batch.frames[0]
    (rows,) = odam_maps(case.taps("level"), targets, frame, smoothing=SMOOTHING)
    for pick in (0, len(case.candidates) - 1):
        tap = case.detector.tap(
            case.forward, 0, "level", case.candidates[pick : pick + 1], case.labels[pick : pick + 1]
        )
        ((alone,),) = odam_maps(Taps([tap]), targets, frame, smoothing=SMOOTHING)
        assert alone[0].region == rows[pick][0].region or alone[0].values.shape != rows[pick][0].values.shape
        assert torch.allclose(alone[0].values.max(), rows[pick][0].values.max(), rtol=1e-9)


def test_group_norm_held_constant_is_near_the_exact_gradient(
    fcos: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    """FCOS' GroupNorm spans the level; how far the local maps are from the exact ones is printed."""
    targets = [scalar("class", LABELS)]
    frame = fcos.forward.batch.frames[0]
    held_rows, exact_rows = (
        odam_maps(fcos.taps("level", exact=exact), targets, frame, smoothing=0.0)[0][-1]
        for exact in (False, True)
    )
    (local,), (whole,) = held_rows, exact_rows
    tap = fcos.taps("level").taps[0]
    cell, offset = tap.grids.cells[-1], tap.grids.offsets[-1]
    placed = paste_map(local, offset, cell, whole.values.shape)
    distance = float((placed - whole.values).norm() / whole.values.norm())
    cosine = float(
        torch.nn.functional.cosine_similarity(placed.flatten(), whole.values.flatten().double(), 0)
    )
    with capsys.disabled():
        print(f"\nFCOS, GroupNorm held constant: {distance:.1%} from the exact map, cosine {cosine:.4f}")
    assert 0 < distance < 0.5
    assert cosine > 0.9


def _question(case: Case, targets: tuple[str, ...], layer: str = "level", **params: object) -> Question:
    count = len(case.candidates)
    boxes = torch.zeros(count, 4)
    detections = Detections(boxes, case.labels, boxes[:, 0], torch.zeros(count, 4), case.candidates)
    defaults = {param.name: param.default for param in METHODS["odam"].params}
    return Question(case.forward, 0, detections, targets, layer, {**defaults, **params})


def test_combined_is_the_maximum_of_the_normalised_maps(case: Case) -> None:
    odam = METHODS["odam"]
    rows = odam.explain(case.detector, _question(case, ("combined", "class", *SIDES)))
    for combined, *parts in rows:
        expected = torch.stack([normalise(part.values) for part in parts]).amax(0)
        assert torch.equal(combined.values, expected)
        assert combined.region == parts[0].region
    alone = odam.explain(case.detector, _question(case, ("combined",)))
    assert all(torch.equal(a[0].values, row[0].values) for a, row in zip(alone, rows, strict=True))


def test_another_class_has_another_map(case: Case) -> None:
    (first, *_) = METHODS["odam"].explain(case.detector, _question(case, ("class:alpha", "class:beta")))
    assert not torch.equal(first[0].values, first[1].values)


def test_several_layers_make_one_map(case: Case) -> None:
    odam = METHODS["odam"]
    targets = ("class", "combined", "x1")
    together = odam.explain(case.detector, _question(case, targets, "level+layer2", fusion="product"))
    each = [
        odam.explain(case.detector, _question(case, ("class", *SIDES), layer))
        for layer in ("level", "layer2")
    ]
    for row, *alone in zip(together, *each, strict=True):
        fused = [fuse_layers(pair, "product") for pair in zip(*alone, strict=True)]
        assert torch.equal(row[0].values, fused[0].values)
        assert row[0].region == fused[0].region
        parts = torch.stack([part.values for part in fused])
        assert torch.equal(row[1].values, fuse(parts, "max", signed=False))
        assert torch.equal(row[2].values, fused[1].values)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_explaining_leaves_no_trace(case: Case, failing: bool, exact: bool) -> None:
    before = case.detector.forward(case.forward.batch).extra["raw"]
    question = _question(case, ("class", "x1"), "layer2+level", exact=exact)
    if failing:
        checks = iter(range(2))
        patience = SimpleNamespace(check=lambda: next(checks))  # the third check raises
        with pytest.raises(StopIteration):
            METHODS["odam"].explain(case.detector, replace(question, patience=patience))  # type: ignore[arg-type]
    else:
        METHODS["odam"].explain(case.detector, question)
    after = case.detector.forward(case.forward.batch).extra["raw"]
    for name, value in before.items():
        pairs = zip(value, after[name], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    for module in case.model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(p.grad is None and not p.requires_grad for p in case.model.parameters())
    kept = [*case.forward.stages.values(), *case.forward.levels.values()]
    assert not any(tensor.requires_grad for tensor in kept)


def test_what_a_pass_keeps_changes_no_output(case: Case) -> None:
    outputs = [case.detector.forward(case.forward.batch, keep=keep).extra["raw"] for keep in (False, True)]
    for name, value in outputs[0].items():
        assert all(torch.equal(a, b) for a, b in zip(value, outputs[1][name], strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ("classs",)}, "targets of odam"),
        ({"targets": ("class:omega",)}, "targets of odam"),
        ({"layer": "layer9"}, "layers of odam"),
        ({"params": {}}, "expected a value for each parameter"),
    ],
)
def test_a_wrong_question_is_refused(case: Case, change: dict[str, object], words: str) -> None:
    question = _question(case, ("class",))
    wrong = Question(**{**question.__dict__, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        METHODS["odam"].explain(case.detector, wrong)
