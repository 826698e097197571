"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from whybox_client import defaults

if TYPE_CHECKING:
    from whybox_client import Client

F = TypeVar("F", bound=Callable[..., Any])

url = click.option(
    "--url",
    envvar="WHYBOX_URL",
    default=defaults.URL,
    show_default=True,
    show_envvar=True,
    help="The service: http://HOST:PORT for REST, grpc://HOST:PORT for gRPC.",
)


def of_images(command: F) -> F:
    """Add what `detect` and `explain` share: the images, the service, and which detections are wanted."""
    for decorate in reversed(
        (
            click.argument("images", nargs=-1, required=True, metavar="IMAGE..."),
            url,
            click.option("-m", "--model", metavar="NAME", help="The model; needed where several are served."),
            click.option(
                "--score-threshold",
                type=click.FloatRange(0, 1),
                help="Lowest score kept.  [default: the model's own]",
            ),
            click.option(
                "--label", "labels", multiple=True, metavar="NAME", help="Only this label; repeatable."
            ),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                default=defaults.TIMEOUT,
                show_default=True,
                help="Seconds to wait for an image.",
            ),
        )
    ):
        command = decorate(command)
    return command


def connect(address: str, **settings: Any) -> Client:
    """Open the client that a command uses; a malformed URL is an error of the command line."""
    from whybox_client import Client

    try:
        return Client(address, **settings)
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
