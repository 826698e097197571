"""Recipes: one YAML file for each model, all that is needed to build and load it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from whybox_proto.errors import shorten, unknown_name

MIB = 2**20

MAX_LABELS = 20_000
MAX_LABEL = 200
"""Characters; so a description of a model, and a list of 1000 detections, stay far below 64 MiB."""

MAX_PIXELS = 89_478_485
"""Of the largest picture that a model may take: Pillow warns of decompression bombs beyond."""

_NAME = re.compile(r"[a-z0-9]+([-._][a-z0-9]+)*")

_CHECKSUM = re.compile(r"md5:[0-9a-f]{6,32}|sha256:[0-9a-f]{6,64}")


class RecipeError(ValueError):
    """A recipe that cannot be used: which file, which field, what was expected and what came."""


@dataclass(frozen=True)
class InputLimits:
    """What pictures a model takes.

    Attributes:
        max_bytes: of the encoded picture.
        max_pixels: of the decoded one.
        max_side: of the decoded one, in pixels.
        max_aspect: its longer side over its shorter one; thinner pictures would vanish when scaled down.
    """

    max_bytes: int = 32 * MIB
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    max_aspect: int = 50


@dataclass(frozen=True)
class Workers:
    """How TorchServe runs a model.

    Attributes:
        count: worker processes.
        batch_size: most requests that share a forward pass.
        max_batch_delay_ms: how long the first request of a batch waits for others.
        response_timeout_s: a worker that takes longer is killed.
        queue_size: requests that wait before more are refused.
        memory_mb: MiB that an explanation may take beside the model and one forward pass; the sizes of chunks
            and batches follow it.
    """

    count: int = 1
    batch_size: int = 4
    max_batch_delay_ms: int = 2
    response_timeout_s: int = 120
    queue_size: int = 100
    memory_mb: int = 2048


@dataclass(frozen=True)
class Recipe:
    """A model's recipe.

    Attributes:
        name: under which it is served: lower case letters, digits, and ``-``, ``.``, ``_`` between them.
        version: of the model.
        description: in a sentence.
        family: of detectors, such as ``torchvision``.
        architecture: known to the family.
        weights: file or folder, relative to the recipe; None where it is given when building.
        source: where the weights come from, for people.
        checksum: of the weights as they come from there: ``sha256:`` or ``md5:`` and hexadecimal digits, all
            or the first; of a folder, one for each file that counts, by name; empty where none is known.
        packed_sha256: of the weights in an archive; written when it is built.
        labels: the classes' names, background left out.
        background: the head's first class is an unused background.
        score_threshold: of answers, when the request names none; None for the model's own.
        nms: for each kind of NMS its numbers, and as ``default`` the kind used when a request names none.
        options: arguments of the architecture.
        methods: for each method, its default layer (``layer``) and parameters.
        calibration: what ``whybox calibrate`` found for each method, for people.
        diagnosis: what ``whybox diagnose`` found; see `whybox.diagnosis`.
        input: what pictures are taken.
        workers: how TorchServe runs it.
    """

    name: str
    family: str
    architecture: str
    labels: tuple[str, ...]
    version: str = "1.0"
    description: str = ""
    weights: str | None = None
    source: str = ""
    checksum: str | Mapping[str, str] = ""
    packed_sha256: str = ""
    background: bool = False
    score_threshold: float | None = None
    nms: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Mapping[str, Any] = field(default_factory=dict)
    input: InputLimits = field(default_factory=InputLimits)
    workers: Workers = field(default_factory=Workers)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: of the YAML file. ``labels`` may name a text file beside it, one label a line.

    Raises:
        RecipeError: if it cannot be read or a field is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping; got {type(data).__name__}")
    data = dict(data)
    if isinstance(data.get("labels"), str):
        data["labels"] = _read_labels(path, data["labels"])
    recipe: Recipe = _build(Recipe, data, str(path))
    if not _NAME.fullmatch(recipe.name):
        raise RecipeError(
            f"{path}: name: expected lower case letters, digits, '-', '.', '_'; got {recipe.name!r}"
        )
    if not recipe.labels or len(set(recipe.labels)) != len(recipe.labels):
        raise RecipeError(f"{path}: labels: expected one or more different names; got {list(recipe.labels)}")
    longest = max(map(len, recipe.labels))
    if len(recipe.labels) > MAX_LABELS or longest > MAX_LABEL:
        raise RecipeError(
            f"{path}: labels: expected at most {MAX_LABELS} of at most {MAX_LABEL} characters; "
            f"got {len(recipe.labels)} of up to {longest}"
        )
    _check_checksum(recipe.checksum, str(path))
    _check_ranges(recipe, str(path))
    return recipe


def _check_checksum(checksum: str | Mapping[str, str], where: str) -> None:
    if isinstance(checksum, str):
        files = {"checksum": checksum} if checksum else {}
    else:
        for name in checksum:
            if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                raise RecipeError(f"{where}: checksum: expected names of files; got {shorten(name)!r}")
        files = {f"checksum.{name}": text for name, text in checksum.items()}
    for field_name, text in files.items():
        if not isinstance(text, str) or not _CHECKSUM.fullmatch(text):
            raise RecipeError(
                f"{where}: {field_name}: expected sha256: or md5: and 6 or more hexadecimal digits, in lower "
                f"case; got {shorten(text)!r}"
            )


def _check_ranges(recipe: Recipe, where: str) -> None:
    threshold = recipe.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise RecipeError(f"{where}: score_threshold: expected a number from 0 to 1; got {threshold:g}")
    for section in ("input", "workers"):
        for name, value in dataclasses.asdict(getattr(recipe, section)).items():
            least = 0 if name == "max_batch_delay_ms" else 1
            if value < least:
                raise RecipeError(f"{where}: {section}.{name}: expected at least {least}; got {value}")
    if recipe.input.max_pixels > MAX_PIXELS:
        raise RecipeError(
            f"{where}: input.max_pixels: expected at most {MAX_PIXELS}; got {recipe.input.max_pixels}"
        )


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML; inverse of `read_recipe`."""
    data = dataclasses.asdict(recipe)
    data["labels"] = list(recipe.labels)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _read_labels(path: Path, name: str) -> list[str]:
    try:
        lines = (path.parent / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: labels: {name} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _build(kind: type[Any], data: Any, where: str) -> Any:
    """Make a dataclass of a mapping, checking names and types."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected a mapping; got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for name, value in data.items():
        if name not in fields:
            error = unknown_name("unknown_field", "field", str(name), fields, field=str(name))
            raise RecipeError(f"{where}: {error.message}; {error.expected}")
        values[name] = _convert(str(fields[name].type), value, f"{where}: {name}")
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(
            f"{where}: expected the fields {', '.join(missing)}; got {', '.join(map(str, data))}"
        )
    return kind(**values)


def _convert(kind: str, value: Any, where: str) -> Any:
    nested: dict[str, type[Any]] = {"InputLimits": InputLimits, "Workers": Workers}
    if kind in nested:
        return _build(nested[kind], value, where)
    if kind == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if kind.endswith(" | None") and value is None:
        return None
    kind = kind.removesuffix(" | None")
    if kind.startswith("str | "):
        kind = kind.removeprefix("str | ") if isinstance(value, Mapping) else "str"
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    plain: dict[str, type] = {"str": str, "int": int, "bool": bool}
    if kind in plain and type(value) is plain[kind]:
        return value
    if kind.startswith("Mapping") and isinstance(value, Mapping):
        return dict(value)
    raise RecipeError(f"{where}: expected {kind}; got {shorten(value)!r}")
