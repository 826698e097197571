"""`whybox calibrate`: which layer, or combination of layers, a method should look at in one detector.

The layer decides how well a map points, and no rule says which: it is measured. On rendered scenes by
faithfulness and by the evidence; on somebody's own pictures by faithfulness alone, since nobody knows what is
true in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from whybox.engine import Engine
from whybox.evaluation.bootstrap import estimate
from whybox.evaluation.cases import Case, cases, mode_of, own_cases
from whybox.evaluation.recipe_edit import edit_recipe
from whybox.evaluation.report import sides, table
from whybox.evaluation.table import Key, Results, Variant, measure_all, variants_of
from whybox.methods.base import SIDES
from whybox.recipe import read_recipe

OVERLAP = 0.75
"""IoU above which a detection in a scene fits its object."""


@dataclass(frozen=True)
class Options:
    """What is to be calibrated.

    Attributes:
        recipe: of the model.
        method: whose layer is sought.
        scenes: rendered ones, for a detector that knows their labels.
        pictures: files of own pictures; where there are some, no scene is rendered.
        pairs: also measure each two of so many layers together, the best ones by themselves.
        fusions: how two layers are put together, where the method offers it.
        detections: most that are explained in a picture.
        cost: most that a map of the choice may take, over a forward pass: a default is for a hundred
            detections and five targets. The best at any cost is recorded beside it.
        seed: of fills and draws.
        device: where the model runs.
        write: whether to write the choice into the recipe.
    """

    recipe: Path
    method: str = "odam"
    scenes: int = 40
    pictures: Sequence[Path] = ()
    pairs: int = 3
    fusions: Sequence[str] = ("mean", "product")
    detections: int = 2
    cost: float = 0.35
    seed: int = 0
    device: str = "cpu"
    write: bool = True


@dataclass(frozen=True)
class Choice:
    """What a method should look at.

    Attributes:
        variant: the best.
        figures: its own, by the names of measures, and ``ms_per_map``.
        ties: variants that are no less faithful, as far as was measured; the best among them.
        why: what decided among them.
    """

    variant: Variant
    figures: dict[str, float]
    ties: tuple[str, ...]
    why: str


def run(options: Options, say: Callable[[str], None] = print) -> Choice:
    """Measure every layer, tell, choose, and write the choice into the recipe.

    Raises:
        ValueError: if the method has no layers in this model, or there is nothing to explain.
    """
    recipe = read_recipe(options.recipe)
    engine = Engine.load(recipe, options.recipe.parent / str(recipe.weights), options.device)
    known = not options.pictures
    count = options.scenes if known else len(options.pictures)
    layers = layers_of(engine, options)
    results = _measured(engine, layers, options, count)
    if not results.detections:
        raise ValueError(f"{recipe.name} finds nothing to explain in {count} pictures")
    ranked = sorted(results.values, key=lambda label: -_mean(results.values[label]))
    pairs = pairs_of(engine, options, ranked[: options.pairs])
    more = _measured(engine, pairs, options, count)
    for kept, added in ((results.values, more.values), (results.seconds, more.seconds)):
        kept.update(added)  # type: ignore[arg-type]
    results.samples.update(more.samples)
    where = "scenes" if known else "pictures"
    head = f"### {recipe.name}: {results.detections} detections in {results.scenes} {where}"
    say("\n\n".join(filter(None, (head, table(results), sides(results)))))
    best = choose(results, [*layers, *pairs])
    choice = choose(results, affordable(results, [*layers, *pairs], options.cost))
    say(f"{choice.variant.label}: {choice.why} that cost at most {options.cost:g} forward passes a map")
    if best.variant != choice.variant:
        say(f"At any cost {best.variant.label}: {best.why}")
    if options.write:
        edit_recipe(options.recipe, changes(options, choice, best, results))
    return choice


def layers_of(engine: Engine, options: Options) -> list[Variant]:
    """Return every layer of a method, as variants.

    Raises:
        ValueError: if the model does not serve the method, or the method has no layers.
    """
    described = {method.name: method for method in engine.model.methods}.get(options.method)
    if described is None or not described.layers:
        able = ", ".join(method.name for method in engine.model.methods if method.layers)
        raise ValueError(
            f"expected a method of {engine.model.name} that has layers: {able}; got {options.method!r}"
        )
    return variants_of(engine, [f"{options.method}@{layer}" for layer in described.layers])


def pairs_of(engine: Engine, options: Options, layers: Sequence[str]) -> list[Variant]:
    """Return each two of some layers together, as variants; none where the method combines no layers.

    Args:
        engine: with the model.
        options: says the method and how layers are put together.
        layers: labels of variants of `layers_of`.
    """
    described = next(method for method in engine.model.methods if method.name == options.method)
    if not described.combines_layers:
        return []
    fusing = any(param.name == "fusion" for param in described.params)
    settings = [f":fusion={name}" for name in options.fusions] if fusing else [""]
    names = [label.partition("@")[2] for label in layers]
    pairs = itertools.combinations(sorted(names, key=list(described.layers).index), 2)
    labels = [f"{options.method}@{one}+{other}{setting}" for one, other in pairs for setting in settings]
    return variants_of(engine, labels) if labels else []


def _measured(engine: Engine, variants: Sequence[Variant], options: Options, pictures: int) -> Results:
    """Measure class maps and, where the truth is known, the sides': each by what is asked of them alone."""
    with tqdm(total=pictures * len(variants), desc=engine.model.name, unit="layer", disable=None) as bar:

        def measured(targets: Sequence[str], names: Sequence[str], tell: Callable[[], None]) -> Results:
            return measure_all(
                engine,
                _cases(engine, options),
                variants,
                masks=500,
                seed=options.seed,
                measures=names,
                targets=targets,
                tell=tell,
            )

        known = not options.pictures
        names = ["insertion", "deletion", *(["energy_box", "evidence_ratio"] if known else [])]
        results = measured(("class",), names, lambda: _tick(bar))
        if known:
            for label, taken in measured(SIDES, ["own_half"], lambda: None).values.items():
                results.values[label].update(taken)
        return results


def affordable(results: Results, variants: Sequence[Variant], most: float) -> list[Variant]:
    """Return the variants whose maps cost at most so much, over a forward pass; the cheapest if none does."""
    cost = {label: float(np.median(seconds)) for label, seconds in results.seconds.items()}
    limit = max(most * float(np.median(results.forward_seconds)), min(cost.values()))
    return [variant for variant in variants if cost.get(variant.label, np.inf) <= limit]


def choose(results: Results, variants: Sequence[Variant]) -> Choice:
    """Choose the variant that points best.

    Faithfulness is insertion minus deletion. Whatever is not surely less faithful than the most faithful one
    (the 95 % interval of the difference on the same maps reaches 0) is as good; among these the evidence
    decides where it is known, by the same rule, and then the cost.
    """
    labels = [variant.label for variant in variants if variant.label in results.values]
    ties = _best(results, labels, _faithfulness)
    why = f"the most faithful of {len(labels)}"
    if len(ties) > 1:
        why = f"as faithful as any of {len(labels)}"
        if any("evidence_ratio" in results.values[label] for label in ties):
            ties = _best(results, ties, lambda taken, key: taken["evidence_ratio"].get(key))
            why += ", and points at the evidence as well as any"
    cost = {label: 1000 * float(np.median(results.seconds[label])) for label in ties}
    best = min(ties, key=lambda label: cost[label])
    if len(ties) > 1:
        why += f"; the cheapest of {len(ties)} such"
    figures: dict[str, float] = {
        name: round(results.estimate(best, name).mean, 3)
        for name in ("insertion", "deletion", "evidence_ratio")
        if name in results.values[best]
    }
    figures["ms_per_map"] = round(cost[best], 2)
    variant = next(variant for variant in variants if variant.label == best)
    return Choice(variant, figures, tuple(ties), why)


def changes(options: Options, choice: Choice, best: Choice, results: Results) -> dict[str, object]:
    """Return the fields of the recipe that a choice changes; `best` is the choice at any cost."""
    chosen = _chosen(choice)
    source = f"{len(options.pictures)} own pictures" if options.pictures else f"{results.scenes} scenes"
    told = {**chosen, "measured_on": f"{results.detections} detections in {source}", **choice.figures}
    if best.variant != choice.variant:
        told["at_any_cost"] = {**_chosen(best), **best.figures}
    return {"methods": {options.method: chosen}, "calibration": {options.method: told}}


def _chosen(choice: Choice) -> dict[str, object]:
    request = choice.variant.request
    chosen: dict[str, object] = {"layer": request.layer}
    if "fusion" in request.params.fields:
        chosen["fusion"] = request.params.fields["fusion"].string_value
    return chosen


Taken = dict[str, dict[Key, float]]
"""By measure, the value of each map."""


def _tick(bar: tqdm[NoReturn]) -> None:
    bar.update()


def _faithfulness(taken: Taken, key: Key) -> float | None:
    insertion, deletion = taken["insertion"].get(key), taken["deletion"].get(key)
    return None if insertion is None or deletion is None else insertion - deletion


def _best(results: Results, labels: Sequence[str], value: Callable[[Taken, Key], float | None]) -> list[str]:
    """Return the labels whose values are not surely below those of the label with the highest mean."""
    values = {}
    for label in labels:
        taken = results.values[label]
        keys = {key for row in taken.values() for key in row if key[2] == "class"}
        known = {key: value(taken, key) for key in sorted(keys)}
        values[label] = {key: found for key, found in known.items() if found is not None}
    means = {label: float(np.mean(list(row.values()))) for label, row in values.items() if row}
    if not means:
        return list(labels)
    top = values[max(means, key=lambda label: means[label])]
    return [label for label in means if not _surely_below(values[label], top)]


def _mean(taken: Taken) -> float:
    """Mean faithfulness of a layer's class maps."""
    known = [_faithfulness(taken, key) for key in taken.get("insertion", {})]
    return float(np.mean([value for value in known if value is not None] or [-np.inf]))


def _surely_below(values: dict[Key, float], top: dict[Key, float]) -> bool:
    """Whether the 95 % interval of the difference lies below 0; one picture alone has no interval."""
    shared = [key for key in top if key in values]
    difference = estimate([values[key] - top[key] for key in shared], [key[0] for key in shared])
    return difference.high < 0


def _cases(engine: Engine, options: Options) -> Iterator[Case | None]:
    if not options.pictures:
        mode = mode_of(engine.model.name)
        return cases(
            engine, mode, options.scenes, overlap=OVERLAP, most=options.detections, seed=options.seed
        )
    return own_cases(engine, options.pictures, options.detections)
