"""`whybox evaluate`: tables of methods × measures for each detector, printed and written into a page."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

from whybox.engine import Engine
from whybox.evaluation import nms, report
from whybox.evaluation.cases import Case, cases, mode_of
from whybox.evaluation.order import Finding, findings
from whybox.evaluation.randomise import Sanity, groups_of, sanity_of
from whybox.evaluation.table import Results, Variant, measure_all, variants_of
from whybox.metrics.measures import MEASURES
from whybox.recipe import read_recipe
from whybox.scenes import CLASSES
from whybox.training.loop import pick_device
from whybox_proto.errors import unknown_name

__all__ = ["Options", "pick_device", "recipes_of", "run", "run_nms"]

SECTION = "whybox evaluate"
"""Of the markers around what is written into the page."""

NMS_SECTION = "whybox evaluate --nms"


@dataclass(frozen=True)
class Options:
    """What is to be measured.

    Attributes:
        recipes: of the models.
        scenes: for each model.
        methods: as `Variant.parse` reads them; empty for all.
        measures: names; empty for all.
        masks: samples of a method that takes many, such as D-RISE.
        detections: most that are explained in a scene.
        overlap: IoU above which a detection fits its object.
        randomised: scenes on which the weights are randomised; 0 for none.
        seed: of samples, fills, draws and random weights.
        device: where the models run.
        page: to write the tables into; None for none.
        command: that is told of in the page.
    """

    recipes: Sequence[Path]
    scenes: int
    methods: Sequence[str] = ()
    measures: Sequence[str] = ()
    masks: int = 500
    detections: int = 2
    overlap: float = 0.75
    randomised: int = 5
    seed: int = 0
    device: str = "cpu"
    page: Path | None = None
    command: str = "whybox evaluate"


def recipes_of(store: Path, names: Sequence[str], *, crowds: bool = False) -> list[Path]:
    """Find the recipes of models by name or path; without names, all demo detectors whose weights are there.

    With `crowds` only those are meant that are not made for scenes of their own kind.

    Raises:
        ValueError: if there is no such recipe, it cannot be used, or its labels are not those of the scenes.
    """
    if not names:
        paths = sorted(store.glob("*.yaml"))
        chosen = [path for path in paths if _weights(path).is_file() and _knows_signs(path)]
        chosen = [path for path in chosen if not crowds or mode_of(path.stem) == "plain"]
        if not chosen:
            raise ValueError(f"there is no recipe with its weights in {store}")
        return chosen
    chosen = []
    for name in names:
        path = Path(name) if name.endswith((".yaml", ".yml")) else store / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in store.glob("*.yaml")))
            raise ValueError(f"there is no recipe {path}; in {store} there are: {known or 'none'}")
        if not _knows_signs(path):
            raise ValueError(f"{path}: its labels are not those of the scenes, {', '.join(CLASSES)}")
        if not _weights(path).is_file():
            raise ValueError(f"{path}: its weights are not there; `make train` makes the demo detectors'")
        chosen.append(path)
    return chosen


def _weights(path: Path) -> Path:
    return path.parent / str(read_recipe(path).weights)


def _knows_signs(path: Path) -> bool:
    return read_recipe(path).labels == CLASSES


def run(options: Options, say: Callable[[str], None] = print) -> str:
    """Measure every model, tell of each as it is done, and write the page.

    Returns:
        What was written, in Markdown.

    Raises:
        ContractError: for a measure, method, layer or parameter that there is not.
        ValueError: for a method that is not written as `Variant.parse` reads it, or a page with one marker.
    """
    for position, name in enumerate(options.measures):
        if name not in MEASURES:
            raise unknown_name("invalid_argument", "measure", name, MEASURES, field=f"measures[{position}]")
    started = time.perf_counter()
    parts: list[str] = []
    found: list[tuple[str, Finding]] = []
    for recipe in options.recipes:
        engine = Engine.load(read_recipe(recipe), _weights(recipe), options.device)
        variants = variants_of(engine, options.methods)
        results = _measured(engine, variants, options)
        sanity = _randomised(engine, variants, options) if options.randomised else None
        parts.append(_of_model(engine, results, sanity))
        say(parts[-1])
        found += [(engine.model.name, finding) for finding in findings(results, sanity)]
    if found:
        parts.append(f"### The order that the papers report\n\n{report.order(found)}")
        say(parts[-1])
    text = "\n".join([_head(options, time.perf_counter() - started), *parts])
    if options.page is not None:
        report.write(options.page, SECTION, text)
    return text


def run_nms(options: Options, say: Callable[[str], None] = print) -> str:
    """Compare the kinds of NMS on crowded scenes; see `run`."""
    started = time.perf_counter()
    parts: list[str] = []
    for recipe in options.recipes:
        engine = Engine.load(read_recipe(recipe), _weights(recipe), options.device)
        name = engine.model.name
        with tqdm(total=options.scenes, desc=f"{name}, NMS", unit="scene", disable=None) as bar:
            rows = nms.evaluate_nms(engine, options.scenes, tell=_ticking(bar))
        parts.append(f"### {name}\n\n{nms.table(rows)}\n")
        say(parts[-1])
    minutes = (time.perf_counter() - started) / 60
    head = (
        f"`{options.command}`, {minutes:.0f} minutes on {_machine(options.device)}: {options.scenes} "
        "held-out `crowd` scenes; means with 95 % bootstrap intervals over scenes.\n"
    )
    text = "\n".join([head, *parts])
    if options.page is not None:
        report.write(options.page, NMS_SECTION, text)
    return text


def _measured(engine: Engine, variants: Sequence[Variant], options: Options) -> Results:
    name = engine.model.name
    with tqdm(total=options.scenes * len(variants), desc=name, unit="method", disable=None) as bar:
        return measure_all(
            engine,
            cases(
                engine,
                mode_of(name),
                options.scenes,
                overlap=options.overlap,
                most=options.detections,
                seed=options.seed,
            ),
            variants,
            masks=options.masks,
            seed=options.seed,
            measures=options.measures or None,
            tell=_ticking(bar),
        )


def _randomised(engine: Engine, variants: Sequence[Variant], options: Options) -> Sanity:
    name = engine.model.name
    found = cases(engine, mode_of(name), options.scenes, overlap=options.overlap, most=1, seed=options.seed)
    chosen: list[Case] = list(itertools.islice(filter(None, found), options.randomised))
    steps = len(groups_of(engine.detector.model)) + 1  # type: ignore[attr-defined]
    with tqdm(total=steps, desc=f"{name}, randomised", unit="layer", disable=None) as bar:
        return sanity_of(engine, chosen, variants, seed=options.seed, tell=_ticking(bar))


def _of_model(engine: Engine, results: Results, sanity: Sanity | None) -> str:
    name = engine.model.name
    counts = f"{results.detections} detections in {results.scenes} `{mode_of(name)}` scenes"
    text = f"### {name}: {counts}\n\n{report.table(results) if results.values else 'Nothing was measured.'}"
    if sanity is not None and sanity.variants():
        text += (
            "\nRank correlation (structural similarity) with the trained network's maps, its weights "
            f"randomised from the top:\n\n{report.sanity_table(sanity)}"
        )
    return text


def _head(options: Options, seconds: float) -> str:
    return (
        f"`{options.command}`, {seconds / 60:.0f} minutes on {_machine(options.device)}: held-out scenes, up "
        f"to {options.detections} detections in each, of IoU above {options.overlap:g} with their object; "
        f"{options.masks} masks; seed {options.seed}. Means with 95 % bootstrap intervals over scenes; "
        "↑ higher is better, ↓ lower. Protocols: [evaluation.md](evaluation.md).\n"
    )


def _ticking(bar: tqdm[NoReturn]) -> Callable[[], None]:
    """Return what moves a bar on by one."""

    def tell() -> None:
        bar.update()

    return tell


def _machine(device: str) -> str:
    if device != "cpu":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of the CPU"
