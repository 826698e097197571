"""`whybox models`: what is served, what a model can be asked, and archives from recipes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whybox_client.cli import names, options
from whybox_client.cli.failures import Failure, needs_extra
from whybox_client.cli.tables import table

if TYPE_CHECKING:
    from whybox_client import Invertible, Model, Parameter

MODEL_STORE = Path("model_store")
"""Where recipes are looked for by their names."""


@click.group(invoke_without_command=True)
@options.url
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def models(ctx: click.Context, url: str, as_json: bool) -> None:
    """List the models that are served."""
    ctx.obj = {"url": url, "as_json": as_json}
    if ctx.invoked_subcommand:
        return
    with options.connect(url) as client:
        served = client.models()
    if as_json:
        click.echo(json.dumps([asdict(model) for model in served], indent=2))
        return
    rows = [
        (
            model.name,
            model.version,
            model.family,
            "yes" if model.ready else "no",
            ", ".join(method.name for method in model.methods),
            len(model.measures),
            len(model.labels),
        )
        for model in served
    ]
    click.echo(table(("NAME", "VERSION", "FAMILY", "READY", "METHODS", "MEASURES", "LABELS"), rows))


@models.command()
@click.argument("name", shell_complete=names.complete_model)
@click.option("--url", help="The service.  [default: that of `whybox models`]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(group: dict[str, Any], name: str, url: str | None, as_json: bool) -> None:
    """Describe one model: labels, methods with their parameters, layers, NMS."""
    with options.connect(url or group["url"]) as client:
        model = client.model(name)
    click.echo(json.dumps(asdict(model), indent=2) if as_json or group["as_json"] else _describe(model))


def _find_recipes(_ctx: click.Context, _param: click.Parameter, given: tuple[Path, ...]) -> tuple[Path, ...]:
    """Turn names into the files of the recipes in model_store."""
    return tuple(_find_recipe(path) for path in given)


def _find_recipe(given: Path) -> Path:
    if given.is_file():
        return given
    if len(given.parts) == 1 and given.suffix != ".yaml":
        for path in sorted(MODEL_STORE.glob("*.yaml")):
            if path.stem.lower() == str(given).lower():  # names of recipes have no capitals, a zoo's may
                return path
    raise click.BadParameter(f"there is no file {given}, and no recipe of that name in {MODEL_STORE}")


@models.command()
@click.argument(
    "recipes", nargs=-1, metavar="[RECIPE]...", type=click.Path(path_type=Path), callback=_find_recipes
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=MODEL_STORE,
    show_default=True,
    help="Folder for the .mar files.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, path_type=Path),
    help="File or folder to pack, instead of the weights that the recipe names; for one recipe.",
)
@click.option(
    "--no-checksum",
    is_flag=True,
    help="Take weights that are not those of the recipe's checksum, such as those of a training of your own.",
)
def build(recipes: tuple[Path, ...], out: Path, weights: Path | None, no_checksum: bool) -> None:
    """Build a .mar archive from each RECIPE, a file or the name of one in model_store.

    By default, from those in model_store that have weights.
    """
    if weights and len(recipes) != 1:
        raise click.UsageError("--weights goes with one recipe")
    try:
        from whybox import archives
    except ImportError as error:
        raise needs_extra("serve", str(error)) from error
    for recipe in recipes or _recipes_with_weights(MODEL_STORE):
        try:
            click.echo(archives.build(recipe, out, weights, checksum=not no_checksum))
        except (OSError, ValueError) as error:
            raise Failure(str(error)) from error


def _recipes_with_weights(folder: Path) -> list[Path]:
    """Find what can be built at once, and tell what cannot."""
    from whybox.recipe import read_recipe

    recipes = sorted(folder.glob("*.yaml"))
    if not recipes:
        raise click.UsageError(f"no recipe given, and none in {folder}")
    ready = []
    for path in recipes:
        try:
            weights = read_recipe(path).weights
        except ValueError as error:
            raise Failure(str(error)) from error
        if weights is not None and (folder / weights).exists():
            ready.append(path)
        else:
            click.echo(f"{path}: its weights are not here; build it with --weights PATH", err=True)
    return ready


def _describe(model: Model) -> str:
    lines = [
        f"{model.name} {model.version} ({model.family}, {model.architecture}), "
        + ("ready" if model.ready else "not ready"),
        *([model.description] if model.description else []),
        *([f"weights          sha256 {model.weights_sha256}"] if model.weights_sha256 else []),
        f"labels           {', '.join(model.labels)}",
        f"score threshold  {model.score_threshold:g}",
    ]
    for nms in model.nms:
        numbers = [f"{key}={value:g}" for key, value in asdict(nms).items() if isinstance(value, float)]
        default = " (default)" if nms.kind == model.default_nms else ""
        lines.append(f"nms              {' '.join([nms.kind, *numbers])}{default}")
    for layer in model.layers:
        stride = f", stride {layer.stride:g}" if layer.stride is not None else ""
        lines.append(f"layer            {layer.name}: {layer.kind}, {layer.channels} channels{stride}")
    for shift in model.spatial_shifts:
        told = ", may mislead" if shift.misleads else ""
        lines.append(
            f"spatial shift    {shift.layer}: {shift.median:g} of the box [{shift.low:g}, {shift.high:g}], "
            f"noise {shift.noise:g}{told}"
        )
    for method in model.methods:
        lines += [
            "",
            f"method {method.name}: {method.description}",
            f"  targets  {', '.join(method.targets)}",
        ]
        if method.layers:
            several = "; several as a+b" if method.combines_layers else ""
            lines.append(f"  layers   {', '.join(method.layers)} (default {method.default_layer}{several})")
        if method.sampling:
            lines.append("  samples  drawn at random: --seconds, --samples and --seed bound and repeat them")
        lines += map(_parameter, method.params)
    if model.inversion:
        lines += ["", *_inversion(model.inversion)]
    if model.measures:
        lines.append("")
    for measure in model.measures:
        needs = f", needs each object's {measure.needs}" if measure.needs else ""
        lines.append(f"measure {measure.name}: {measure.better} is better{needs}. {measure.protocol}")
    return "\n".join(lines)


def _inversion(inversion: Invertible) -> list[str]:
    masks = "boxes and masks" if inversion.masks else "boxes"
    lines = [
        f"inversion: a picture of a layout with at most {inversion.max_objects} objects and "
        f"{inversion.max_pixels} pixels, by {masks}"
    ]
    lines += [f"  preset {preset.name}: {preset.description}" for preset in inversion.presets]
    return [*lines, *map(_parameter, inversion.params)]


def _parameter(parameter: Parameter) -> str:
    choices = f" of {', '.join(parameter.choices)}" if parameter.choices else ""
    default = f", default {json.dumps(parameter.default)}"
    return f"  {parameter.name}: {parameter.type}{choices}{default}. {parameter.description}"
