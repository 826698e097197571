"""From a recipe and a checkpoint to a detector of the transformers library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from whybox.detectors.transformers import KINDS, TransformersDetector
from whybox.detectors.transformers_checkpoint import (
    Checkpoint,
    own_backbone,
    pack_checkpoint,
    read_checkpoint,
    rename_timm,
)
from whybox.detectors.weights import refuse_misfits
from whybox.recipe import Recipe, RecipeError
from whybox_proto.errors import shorten

pack = pack_checkpoint


def load(recipe: Recipe, weights: Path) -> TransformersDetector:
    """Load a checkpoint, as it comes or as it is packed.

    Args:
        recipe: `architecture` is the library's ``model_type``, one of `KINDS`.
        weights: see `read_checkpoint`.

    Raises:
        RecipeError: if the architecture is unknown or another one, the checkpoint is incomplete, asks for
            code or is quantised, or weights or labels do not fit.
    """
    if recipe.architecture not in KINDS:
        raise RecipeError(
            f"{recipe.name}: architecture: expected one of {', '.join(KINDS)}; got {recipe.architecture!r}"
        )
    checkpoint = read_checkpoint(recipe, weights)
    kind, found = KINDS[recipe.architecture], checkpoint.config.get("model_type")
    classes = checkpoint.config.get("architectures") or [kind.model]
    classes = classes if isinstance(classes, list) else [classes]
    if found != recipe.architecture or classes != [kind.model]:
        raise RecipeError(
            f"{recipe.name}: the checkpoint is of another architecture: expected {kind.model} "
            f"({recipe.architecture}); got {', '.join(map(str, classes))} ({found})"
        )
    _check_order(recipe, checkpoint.config.get("id2label"))
    model = _build_model(recipe, checkpoint, weights)
    processor = _build_processor(recipe, checkpoint)
    try:
        return TransformersDetector(model, processor, recipe.labels, background=recipe.background)
    except ValueError as error:
        raise RecipeError(f"{recipe.name}: {error}") from error
    except Exception as error:  # whatever a network raises whose parts do not fit each other
        raise RecipeError(
            f"{recipe.name}: config.json: the model fails on a picture: {type(error).__name__}: {error}"
        ) from error


def _check_order(recipe: Recipe, named: Any) -> None:
    """Refuse labels that are the checkpoint's own in another order: boxes would be right, and names wrong."""
    if not isinstance(named, Mapping):
        return
    own = [str(named.get(str(index))) for index in range(int(recipe.background), len(named))]
    if own != list(recipe.labels) and sorted(own) == sorted(recipe.labels):
        raise RecipeError(
            f"{recipe.name}: labels: expected the order of id2label in the checkpoint's config.json, "
            f"{shorten(', '.join(own))}; got {shorten(', '.join(recipe.labels))}"
        )


def _build_model(recipe: Recipe, checkpoint: Checkpoint, path: Path) -> Any:
    kind = getattr(transformers, KINDS[recipe.architecture].model)
    config, timm = own_backbone(checkpoint.config)
    weights = rename_timm(checkpoint.weights) if timm else dict(checkpoint.weights)
    try:
        with _quiet():
            # It knows the names that older versions gave the weights.
            model, report = kind.from_pretrained(
                None,
                config=kind.config_class.from_dict(config),
                state_dict=weights,
                dtype=torch.float32,
                attn_implementation={"": "sdpa"},  # of the transformer; the backbone has its default
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # whatever the library's own checks raise
        raise RecipeError(
            f"{recipe.name}: config.json: the library cannot build this model: {error}"
        ) from error
    missing, extra = (
        sorted(name for name in report[f"{what}_keys"] if not name.endswith("num_batches_tracked"))
        for what in ("missing", "unexpected")
    )
    shaped = [
        f"{name} {tuple(came)}, expected {tuple(wanted)}"
        for name, came, wanted in sorted(report["mismatched_keys"], key=str)
    ]
    refuse_misfits(path, missing, extra, shaped)
    return model


def _build_processor(recipe: Recipe, checkpoint: Checkpoint) -> Any:
    kind = getattr(transformers, KINDS[recipe.architecture].processor)
    try:
        with _quiet():
            return kind.from_dict(dict(checkpoint.preprocessor))
    except Exception as error:  # whatever the library's own checks raise
        raise RecipeError(
            f"{recipe.name}: preprocessor_config.json: the library cannot use it: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from telling of its work, in the block: what matters of it is told here."""
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
