"""Options and arguments that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from whybox_client import defaults
from whybox_client.cli import names
from whybox_client.cli.failures import Failure

if TYPE_CHECKING:
    from PIL import Image

    from whybox_client import Client, Nms
    from whybox_client.models import ParameterValue

F = TypeVar("F", bound=Callable[..., Any])

_CERTIFICATES = ("ca", "certificate", "certificate_key")


def url(command: F) -> F:
    """Add where the service is, and the certificates of TLS; `connect` finds those by itself.

    The API key is no option: others on the machine see command lines. It is WHYBOX_API_KEY.
    """
    for decorate in (
        *(
            click.option(
                f"--{name}",
                type=click.Path(exists=True, dir_okay=False),
                envvar=f"WHYBOX_{variable}",
                show_envvar=True,
                expose_value=False,
                callback=_keep,
                help=text,
            )
            for name, variable, text in (
                ("certificate-key", "CLIENT_KEY", "PEM file of that certificate's private key."),
                ("certificate", "CLIENT_CERTIFICATE", "PEM file of the certificate shown to the service."),
                ("ca", "CA", "PEM file of the authorities that the service's certificate comes from."),
            )
        ),
        click.option(
            "--url",
            envvar="WHYBOX_URL",
            default=defaults.URL,
            show_default=True,
            show_envvar=True,
            help="The service: http:// or https://HOST:PORT for REST, grpc:// or grpcs://HOST:PORT for gRPC.",
        ),
    ):
        command = decorate(command)
    return command


def _keep(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        ctx.meta[f"{__name__}.{parameter.name}"] = value
    return value


_NMS_NUMBERS = ("iou_threshold", "corr_high", "corr_low", "sigma", "final_threshold")


def _nms_numbers(_ctx: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for text in values:
        name, _, value = text.partition("=")
        if name not in _NMS_NUMBERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(_NMS_NUMBERS)}")
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER") from error
    return numbers


def _complete_nms_number(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    return [f"{name}=" for name in _NMS_NUMBERS if name.startswith(incomplete)]


def parameters(
    _ctx: click.Context, _option: click.Parameter, values: Sequence[str]
) -> dict[str, ParameterValue]:
    """Read NAME=VALUE: a number, true or false, or else a string."""
    params: dict[str, ParameterValue] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        params[name] = parsed if isinstance(parsed, bool | int | float | str) else value
    return params


def picture_file(_ctx: click.Context, _option: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a suffix that no picture has before the work, not after it."""
    if value is not None:
        from PIL import Image

        if value.suffix.lower() not in Image.registered_extensions():
            raise click.BadParameter(f"{str(value)!r} has no suffix of a picture, such as .png")
    return value


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture to a file, in a folder that need not be there.

    Raises:
        Failure: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}") from error


def nms_of(kind: str | None, numbers: Mapping[str, float]) -> Nms | None:
    """Put `--nms` and `--nms-param` together; None: the model's own."""
    from whybox_client import Nms

    return Nms(kind or "", **numbers) if kind or numbers else None


def of_images(command: F) -> F:
    """Add what `detect` and `explain` share: the images, the service, and which detections are wanted."""
    for decorate in reversed(
        (
            click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...", type=click.Path()),
            url,
            model,
            click.option(
                "--score-threshold",
                type=click.FloatRange(0, 1),
                help="Lowest score kept.  [default: the model's own]",
            ),
            click.option(
                "--label", "labels", multiple=True, metavar="NAME", help="Only this label; repeatable."
            ),
            click.option(
                "--nms",
                "nms_kind",
                metavar="KIND",
                shell_complete=names.complete_nms,
                help="How duplicates are suppressed: iou, odam, soft or none.  [default: the model's own]",
            ),
            click.option(
                "--nms-param",
                "nms_numbers",
                multiple=True,
                callback=_nms_numbers,
                shell_complete=_complete_nms_number,
                metavar="NAME=NUMBER",
                help="A number of it, such as iou_threshold=0.5 or corr_high=0.8; repeatable.",
            ),
            click.option(
                "--suppressed", is_flag=True, help="List what was suppressed as a duplicate, and why."
            ),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                default=defaults.TIMEOUT,
                show_default=True,
                help="Seconds to wait for an image, all attempts together.",
            ),
            click.option(
                "--retries",
                type=click.IntRange(min=0),
                default=defaults.RETRIES,
                show_default=True,
                help="How often an image is sent again where that can help.",
            ),
            click.option(
                "-j",
                "--jobs",
                type=click.IntRange(min=1),
                default=defaults.CONCURRENCY,
                show_default=True,
                help="Most images under way at one time.",
            ),
            click.option("-r", "--recursive", is_flag=True, help="Of a folder, the folders below too."),
            click.option(
                "--continue-on-error/--stop-on-error",
                default=True,
                show_default=True,
                help="Whether the others go on when an image fails. What would fail for all stops at once.",
            ),
        )
    ):
        command = decorate(command)
    return command


def model(command: F) -> F:
    """Add which model is meant."""
    return click.option(
        "-m",
        "--model",
        metavar="NAME",
        shell_complete=names.complete_model,
        help="The model; needed where several are served.",
    )(command)


def connect(address: str, **settings: Any) -> Client:
    """Open the client that a command uses; a malformed URL is an error of the command line."""
    from whybox_client import Client

    meta = click.get_current_context().meta
    ca, certificate, key = (meta.get(f"{__name__}.{name}") for name in _CERTIFICATES)
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --certificate-key go together")
    pair = (certificate, key) if certificate and key else None
    try:
        return Client(address, ca=ca, certificate=pair, **settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def choose_model(client: Client, named: str | None) -> str:
    """Return the model that was named, or the only one served."""
    if named:
        return named
    served = [model.name for model in client.models()]
    if len(served) == 1:
        return served[0]
    raise click.UsageError(
        f"say which --model: {', '.join(served)}" if served else "the service has no model"
    )
