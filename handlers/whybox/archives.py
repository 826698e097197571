"""Builds self-contained TorchServe archives (.mar) from recipes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

import whybox
import whybox_proto
from whybox.checksums import check_weights, digest
from whybox.detectors.registry import pack_detector
from whybox.engine import Engine
from whybox.recipe import Recipe, RecipeError, dump_recipe, read_recipe
from whybox.torchserve import entry
from whybox.torchserve.handler import RECIPE_FILE

LEFT_OUT = (
    *("scenes", "training", "evaluation", "__pycache__", "archives.py", "checksums.py", "testing.py"),
    *("*_grpc.py", "*.pyi", "*.proto"),
)
"""What a worker does not need."""

TRIAL = 256
"""Side of the picture that a model is tried on, at most."""


def build(recipe_path: Path, out_dir: Path, weights: Path | None = None, *, checksum: bool = True) -> Path:
    """Build the archive of a recipe.

    The checkpoint is made self-contained, and what will be served is loaded, described and tried on a picture
    first, so that what does not fit is told here and not by a worker that fails. The archive carries weights,
    recipe, entry file, `whybox` and `whybox_proto`; where it is served torch, torchvision, protobuf,
    safetensors, numpy, pillow and pyyaml must be installed, and the library of the recipe's family.

    Args:
        recipe_path: the recipe.
        out_dir: folder for the archive; made if missing.
        weights: file or folder to use instead of the recipe's own.
        checksum: whether the weights must be those of the recipe's checksum, where it has one; the archive of
            others has none.

    Returns:
        The archive, ``{name}.mar``.

    Raises:
        RecipeError: if the weights are others than the recipe's, if recipe, weights and labels do not fit, or
            if the model fails on a picture.
    """
    recipe = read_recipe(recipe_path)
    if weights is None:
        if recipe.weights is None:
            where = f" They come from {recipe.source}." if recipe.source else ""
            raise RecipeError(
                f"{recipe_path}: weights: expected a file or folder; the recipe names none.{where}"
            )
        weights = recipe_path.parent / recipe.weights
    if not weights.exists():
        raise RecipeError(f"{recipe_path}: weights: there is no file or folder {weights}")
    if checksum:
        check_weights(recipe, weights)
    else:
        recipe = dataclasses.replace(recipe, checksum="")
    with tempfile.TemporaryDirectory() as scratch:
        packed, packed_weights = pack_detector(recipe, weights, Path(scratch))
        packed = dataclasses.replace(packed, packed_sha256=digest(packed_weights))
        _try_out(Engine.load(packed, packed_weights))
        out_dir.mkdir(parents=True, exist_ok=True)
        _package(packed, packed_weights, Path(scratch), out_dir)
    return out_dir / f"{recipe.name}.mar"


def _try_out(engine: Engine) -> None:
    """Detect on a picture of noise.

    Raises:
        RecipeError: if that fails, or comes to what is not finite.
    """
    recipe, detector = engine.recipe, engine.detector
    side = min(TRIAL, recipe.input.max_side, math.isqrt(recipe.input.max_pixels))
    noise = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (side, side, 3), generator=noise, dtype=torch.uint8)
    try:
        ((_, batch),) = detector.prepare([picture])
        candidates = detector.candidates(detector.forward(batch), 0)
        detector.postprocess(candidates, batch.frames[0], detector.defaults)
    except Exception as error:  # whatever a library raises over a configuration that it took
        raise RecipeError(
            f"{recipe.name}: the model fails on a picture of {side} x {side} pixels: "
            f"{type(error).__name__}: {error}"
        ) from error
    for what, values in (
        ("pixels, as they are prepared,", batch.pixels),
        ("scores", candidates.scores),
        ("boxes", candidates.boxes),
    ):
        if not values.isfinite().all():
            raise RecipeError(f"{recipe.name}: the {what} of a picture of noise are not finite")


def _package(recipe: Recipe, weights: Path, scratch: Path, out_dir: Path) -> None:
    """Write the archive; the scratch folder holds the weights."""
    files = scratch / "files"
    for package in (whybox, whybox_proto):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, files / source.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (files / RECIPE_FILE).write_text(
        dump_recipe(dataclasses.replace(recipe, weights=weights.name)), encoding="utf-8"
    )
    # Workers import the entry by its base name, so each archive's has its own.
    slug = "".join(c if c.isalnum() else "_" for c in recipe.name)
    entry_file = scratch / f"whybox_entry_{slug}.py"
    shutil.copyfile(str(entry.__file__), entry_file)
    config = scratch / "model-config.yaml"
    config.write_text(yaml.safe_dump(_model_config(recipe)), encoding="utf-8")
    options = {
        "--model-name": recipe.name,
        "--handler": str(entry_file),
        "--version": recipe.version,
        "--serialized-file": str(weights),
        "--extra-files": str(files),
        "--export-path": str(out_dir),
        "--config-file": str(config),
    }
    # A process of its own: the archiver packs in a folder of the temporary one that is named after the model,
    # so two builds of one name would meet there.
    (scratch / "packing").mkdir()
    made = subprocess.run(
        [
            *(sys.executable, "-m", "model_archiver.model_packaging", "--force"),
            *itertools.chain(*options.items()),
        ],
        env={**os.environ, "TMPDIR": str(scratch / "packing")},
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise RuntimeError(f"torch-model-archiver failed: {made.stderr.strip()[-500:]}")


def _model_config(recipe: Recipe) -> dict[str, int]:
    """TorchServe's own settings of a model."""
    workers = recipe.workers
    return {
        "minWorkers": workers.count,
        "maxWorkers": workers.count,
        "batchSize": workers.batch_size,
        "maxBatchDelay": workers.max_batch_delay_ms,
        "responseTimeout": workers.response_timeout_s,
        "jobQueueSize": workers.queue_size,
    }
