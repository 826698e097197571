"""`python -m whybox.training`: train the demo detectors, or evaluate them again.

python -m whybox.training --all                       # the demo models, by their recipes
python -m whybox.training --model retinanet-signs     # one of them
python -m whybox.training --arch fcos --scenes plain,crowd --images 20000 --seed 7 --out out/mine
python -m whybox.training evaluate --model fcos-signs
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
from pathlib import Path

import torch

from whybox.detectors.small import ARCHITECTURES
from whybox.scenes import MODES, Mode, Scene
from whybox.training.card import write_card
from whybox.training.checkpoint import load_weights, save_weights
from whybox.training.evaluate import Figures, evaluate, held_out
from whybox.training.loop import pick_device, train
from whybox.training.recipe import DEMO, Recipe


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["evaluate"]:
        return _evaluate(_evaluate_parser().parse_args(words[1:]))
    parser = _train_parser()
    options = parser.parse_args(words)
    if not (options.all or options.model or options.arch):
        parser.error("expected --all, --model or --arch")
    recipes = (
        list(DEMO.values()) if options.all else [DEMO[options.model] if options.model else _own(options)]
    )
    for recipe in recipes:
        _train(recipe, options)
    return 0


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m whybox.training", description="Train demo detectors.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="the demo models: " + ", ".join(DEMO))
    what.add_argument("--model", choices=list(DEMO), help="one demo model, by its recipe")
    what.add_argument("--arch", choices=list(ARCHITECTURES), help="a model of your own")
    parser.add_argument("--name", help="file name of a model of your own (default: ARCH-signs)")
    parser.add_argument(
        "--scenes", default="plain,crowd", help="modes of --arch, in equal parts, or as MODE=SHARE"
    )
    parser.add_argument("--images", type=int, default=40_000, help="scenes to render for --arch")
    parser.add_argument("--seed", type=int, default=1, help="seed of --arch")
    parser.add_argument("--size", type=int, default=256, help="side of the scenes of --arch in pixels")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="renderers")
    parser.add_argument(
        "--out", type=Path, default=Path("model_store"), help="folder for weights/ and cards/"
    )
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("out/training"), help="folder for checkpoints"
    )
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint if there is one")
    parser.add_argument("--held-out", type=int, default=500, help="scenes to evaluate on; 0: none")
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m whybox.training evaluate", description="COCO figures of a model."
    )
    parser.add_argument("--model", choices=list(DEMO), required=True)
    parser.add_argument("--out", type=Path, default=Path("model_store"), help="folder with weights/")
    parser.add_argument("--scenes", help="modes, separated by commas (default: those of the recipe)")
    parser.add_argument("--held-out", type=int, default=500, help="scenes in all")
    parser.add_argument("--device", default="auto")
    return parser


def _own(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line describes."""
    shares = _shares(options.scenes)
    name = options.name or f"{options.arch}-signs"
    return Recipe(name, options.arch, shares, options.images, options.seed, size=(options.size, options.size))


def _shares(text: str) -> tuple[tuple[Mode, float], ...]:
    """`plain,crowd` → halves; `plain=0.65,crowd=0.35` → those shares."""
    parts = [part.partition("=") for part in text.split(",")]
    return tuple((_mode(name), float(share) if share else 1.0 / len(parts)) for name, _, share in parts)


def _mode(name: str) -> Mode:
    for mode in MODES:
        if mode == name:
            return mode
    raise SystemExit(f"--scenes: expected some of {', '.join(MODES)}, got {name!r}")


def _train(recipe: Recipe, options: argparse.Namespace) -> None:
    trained = train(
        recipe,
        device=options.device,
        workers=options.workers,
        checkpoint=options.checkpoints / f"{recipe.name}.pt",
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
    )
    weights = options.out / "weights" / f"{recipe.name}.safetensors"
    save_weights(weights, trained.model, recipe.architecture)
    print(
        f"{recipe.name}: {trained.step} steps in {trained.seconds / 60:.1f} minutes → {weights}", flush=True
    )
    if not options.held_out:
        return
    model = load_weights(weights, recipe.architecture)  # judge what was stored, fp16 included
    figures = evaluate(
        model, _held_out(recipe.held_out_modes, options.held_out), device=pick_device(options.device)
    )
    card = options.out / "cards" / f"{recipe.name}.md"
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text(
        write_card(
            recipe,
            figures,
            command=_command(recipe),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            seconds=trained.seconds,
            machine=_machine(pick_device(options.device)),
        ),
        encoding="utf-8",
    )
    _print(figures)


def _evaluate(options: argparse.Namespace) -> int:
    recipe = DEMO[options.model]
    modes = (
        tuple(_mode(name) for name in options.scenes.split(",")) if options.scenes else recipe.held_out_modes
    )
    model = load_weights(options.out / "weights" / f"{recipe.name}.safetensors", recipe.architecture)
    _print(evaluate(model, _held_out(modes, options.held_out), device=pick_device(options.device)))
    return 0


def _held_out(modes: tuple[Mode, ...], count: int) -> dict[Mode, list[Scene]]:
    return {mode: held_out(mode, count // len(modes)) for mode in modes}


def _command(recipe: Recipe) -> str:
    if DEMO.get(recipe.name) == recipe:
        return f"python -m whybox.training --model {recipe.name}"
    scenes = ",".join(f"{mode}={share:g}" for mode, share in recipe.modes)
    return (
        f"python -m whybox.training --arch {recipe.architecture} --name {recipe.name} --scenes {scenes} "
        f"--images {recipe.images} --seed {recipe.seed} --size {recipe.size[0]}"
    )


def _machine(device: str) -> str:
    if device == "cpu":
        words = {1: "one CPU core", 2: "two CPU cores", 4: "four CPU cores", 8: "eight CPU cores"}
        count = os.cpu_count() or 1
        return f"{words.get(count, f'{count} CPU cores')} ({platform.machine()})"
    return f"one {torch.cuda.get_device_name(device)}"


def _print(figures: dict[str, Figures]) -> None:
    for name, row in figures.items():
        shown = {key: value for key, value in dataclasses.asdict(row).items() if value is not None}
        print(
            name, " ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items())
        )


if __name__ == "__main__":
    raise SystemExit(main())
