"""Methods × measures for one detector: every map measured, and what it cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from whybox.detectors.base import WhiteBoxDetector
from whybox.engine import Engine
from whybox.evaluation.bootstrap import Estimate, estimate
from whybox.evaluation.cases import HELD_OUT_SEED, Case
from whybox.explaining import Explaining
from whybox.measuring import Measuring
from whybox.methods import METHODS
from whybox.methods.base import SIDES, Map, Question
from whybox.methods.sampling import SamplingMethod
from whybox.metrics.measures import MEASURES
from whybox.metrics.pointing import energies, energy_share
from whybox.patience import Patience
from whybox.recipe import MIB
from whybox.scenes import render
from whybox_proto.checks import check_explain
from whybox_proto.maps import enlarge
from whybox_proto.v1 import explainer_pb2

ON_MARK = "energy_mark"
"""Share of the class map's energy on the mark beside the object, in scenes that have marks."""

FEW = 100
"""Samples of a method: D-RISE takes more, ODSmoothGrad does not."""

Key = tuple[int, int, str]
"""Of one map: scene, detection, target."""


@dataclass(frozen=True)
class Variant:
    """A method with its settings.

    Attributes:
        label: as it was asked for, such as ``odam`` or ``d_rise@layer2:samples=10``.
        request: asks the method.
    """

    label: str
    request: explainer_pb2.ExplainRequest

    @property
    def method(self) -> str:
        """The method's name."""
        return self.request.method

    @classmethod
    def parse(cls, label: str) -> Variant:
        """Read ``NAME[@LAYER][:PARAMETER=VALUE,…]``.

        Raises:
            ValueError: if it is not written like that.
        """
        head, _, settings = label.partition(":")
        name, _, layer = head.partition("@")
        request = explainer_pb2.ExplainRequest(method=name, layer=layer)
        for setting in filter(None, settings.split(",")):
            key, equals, text = setting.partition("=")
            if not name or not key or not equals:
                raise ValueError(f"expected NAME[@LAYER][:PARAMETER=VALUE,…]; got {label!r}")
            request.params[key] = _value(text)
        return cls(label, request)


def _value(text: str) -> bool | float | str:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


@dataclass
class Results:
    """What was measured of one detector.

    Attributes:
        values: for each variant and measure, the value of each map.
        seconds: for each variant, of making one class map.
        samples: for each variant, that one class map took; 0 for methods that draw none.
        forward_seconds: of one forward pass of one scene.
        scenes, detections: that were explained.
        unmarked: score with the mark removed, over the score with it, of each detection of a marked object.
    """

    values: dict[str, dict[str, dict[Key, float]]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    forward_seconds: list[float] = field(default_factory=list)
    scenes: int = 0
    detections: int = 0
    unmarked: dict[Key, float] = field(default_factory=dict)

    def estimate(self, variant: str, measure: str) -> Estimate:
        """Return the mean of a measure, with its interval over scenes."""
        taken = self.values.get(variant, {}).get(measure, {})
        return estimate(list(taken.values()), [scene for scene, _, _ in taken])

    def difference(self, first: tuple[str, str], second: tuple[str, str]) -> Estimate:
        """Return the mean difference of two (variant, measure), over the maps that both were taken of."""
        one, other = (self.values.get(v, {}).get(m, {}) for v, m in (first, second))
        shared = [key for key in one if key in other]
        return estimate([one[key] - other[key] for key in shared], [scene for scene, _, _ in shared])

    def unmarked_estimate(self) -> Estimate:
        """Return the mean share of the score that is left without the mark."""
        return estimate(list(self.unmarked.values()), [scene for scene, _, _ in self.unmarked])

    def measures(self) -> list[str]:
        """Name the measures that were taken, in their own order."""
        taken = {measure for row in self.values.values() for measure in row}
        return [name for name in (*MEASURES, ON_MARK) if name in taken]


def variants_of(engine: Engine, asked: Sequence[str]) -> list[Variant]:
    """Return the variants that fit a detector: those asked for, or every method as the model describes it.

    Raises:
        ContractError: for a method, layer or parameter that no model could have; what this model alone lacks
            is left out.
    """
    if not asked:
        return [Variant.parse(method.name) for method in engine.model.methods]
    served = {method.name for method in engine.model.methods}
    variants = []
    for variant in map(Variant.parse, asked):
        if variant.method in METHODS and variant.method not in served:
            continue
        probe = explainer_pb2.ExplainRequest(image=b"-")
        probe.MergeFrom(variant.request)
        check_explain(probe, engine.model)
        variants.append(variant)
    return variants


def measure_all(
    engine: Engine,
    cases: Iterator[Case | None],
    variants: Sequence[Variant],
    *,
    masks: int,
    seed: int = 0,
    measures: Sequence[str] | None = None,
    targets: Sequence[str] = ("class", *SIDES),
    tell: Callable[[], None] = lambda: None,
) -> Results:
    """Explain and measure.

    Args:
        engine: with the detector.
        cases: of its scenes.
        variants: of methods.
        masks: samples of a method that takes many; see `question_of`.
        seed: of the samples and of the random fill.
        measures: names; None for all.
        targets: of the maps, of the class and the four sides.
        tell: called after each scene and variant.
    """
    results = Results()
    explaining = Explaining(engine.recipe, engine.detector, engine.model)
    measuring = Measuring(engine.detector, engine.recipe.workers.memory_mb * MIB)
    for case in cases:
        if case is None:
            for _ in variants:
                tell()
            continue
        results.scenes += 1
        results.detections += len(case.found)
        results.forward_seconds.append(_forward_seconds(engine.detector, case))
        results.unmarked.update(_unmarked(measuring, case))
        for variant in variants:
            _measure(engine, explaining, measuring, case, variant, masks, seed, measures, targets, results)
            tell()
    return results


def _measure(
    engine: Engine,
    explaining: Explaining,
    measuring: Measuring,
    case: Case,
    variant: Variant,
    masks: int,
    seed: int,
    measures: Sequence[str] | None,
    targets: Sequence[str],
    results: Results,
) -> None:
    able = METHODS[variant.method].targets
    for group in (("class",), SIDES):
        asked = [target for target in group if target in able and target in targets]
        if not asked:
            continue
        question = question_of(engine.detector, explaining, case, variant, asked, masks=masks, seed=seed)
        started = time.perf_counter()
        rows = METHODS[variant.method].explain(engine.detector, question)
        synchronise(engine.detector)
        if group == ("class",):
            each = (time.perf_counter() - started) / len(rows)
            results.seconds.setdefault(variant.label, []).append(each)
            results.samples[variant.label] = rows[0][0].samples or 0
        for i, row in enumerate(rows):
            for target, made in zip(asked, row, strict=True):
                taken = measuring.take(
                    made,
                    target,
                    case.found.boxes[i].tolist(),
                    int(case.found.labels[i]),
                    case.picture,
                    truth=case.truths[i],
                    names=measures,
                    seed=seed,
                )
                taken |= _on_mark(made, target, case, i)
                for name, value in taken.items():
                    key = case.number, i, target
                    results.values.setdefault(variant.label, {}).setdefault(name, {})[key] = value


def question_of(
    detector: WhiteBoxDetector,
    explaining: Explaining,
    case: Case,
    variant: Variant,
    targets: Sequence[str],
    *,
    masks: int,
    seed: int,
) -> Question:
    """Return what a variant is asked about a case.

    Args:
        detector: that found the case's detections.
        explaining: of the detector.
        case: whose detections are to be explained.
        variant: of a method.
        targets: of the maps.
        masks: samples of a method that takes many: more than `FEW` of its own accord, from a source without
            end, and not told how many by the variant.
        seed: of the samples.
    """
    request = explainer_pb2.ExplainRequest(targets=targets, seed=seed)
    request.MergeFrom(variant.request)
    found = case.found
    question = explaining.question(request, case.picture, case.forward, 0, found, Patience())
    method = METHODS[variant.method]
    if isinstance(method, SamplingMethod):
        plan = method.plan(detector, question)
        if plan.most is None and plan.samples > FEW and "samples" not in variant.request.params:
            return dataclasses.replace(question, samples=masks)
    return question


def _on_mark(made: Map, target: str, case: Case, detection: int) -> dict[str, float]:
    mark = case.marks[detection]
    if mark is None or target != "class":
        return {}
    height, width = mark.shape
    values = enlarge(made.values.cpu().numpy(), made.region, width, height)
    return {ON_MARK: energy_share(energies(values, made.signed), mark)}


def _unmarked(measuring: Measuring, case: Case) -> dict[Key, float]:
    """Look at the scene without each object's mark."""
    left = {}
    for i, (mark, position) in enumerate(zip(case.marks, case.positions, strict=True)):
        if mark is None:
            continue
        scene = render("cheat", seed=HELD_OUT_SEED, index=case.number, unmarked=[position])
        box, label = case.found.boxes[i].tolist(), int(case.found.labels[i])
        with_mark, without = measuring.scores(box, label, [case.picture, torch.from_numpy(scene.image)])
        if with_mark > 0:
            left[case.number, i, "class"] = without / with_mark
    return left


def synchronise(detector: WhiteBoxDetector) -> None:
    """Wait until a GPU has done what it was asked, so that clocks tell the truth."""
    if detector.device.type == "cuda":
        torch.cuda.synchronize(detector.device)


def _forward_seconds(detector: WhiteBoxDetector, case: Case) -> float:
    started = time.perf_counter()
    detector.forward(case.forward.batch)
    synchronise(detector)
    return time.perf_counter() - started
