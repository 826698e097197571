"""`whybox serve`: TorchServe and the gateway as one process tree."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from whybox_client.cli.failures import needs_extra

# Of the [serve] extra, what the processes that `serve` starts would miss first.
_NEEDED = ("fastapi", "torch", "ts")
_PORT = click.IntRange(0, 65535)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=_PORT, default=8000, show_default=True, help="Port of REST; 0: a free one.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="Port of gRPC; 0: a free one.")
@click.option(
    "--model-store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="model_store",
    show_default=True,
    help="Folder with the .mar files.",
)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model; repeatable.")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that gets the addresses, as JSON, once every model can answer.",
)
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for TorchServe's logs.  [default: one that is gone afterwards]",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="WHYBOX_DATA",
    show_envvar=True,
    help="Folder for inversions, which outlive the service in it.  [default: ~/.local/share/whybox]",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Within ten minutes: how often TorchServe, or the gateway, is started again before all ends.",
)
@click.option(
    "--hung-seconds",
    type=click.FloatRange(min=1),
    default=30,
    show_default=True,
    help="How long either may leave every question unanswered before it is killed and started again.",
)
@click.pass_context
def serve(
    ctx: click.Context,
    host: str,
    port: int,
    grpc_port: int,
    model_store: Path,
    models: tuple[str, ...],
    ready_file: Path | None,
    log_dir: Path | None,
    data: Path | None,
    max_restarts: int,
    hung_seconds: float,
) -> None:
    """Serve the models of a folder over REST and gRPC until Ctrl-C."""
    if missing := [module for module in _NEEDED if find_spec(module) is None]:
        raise needs_extra("serve", f"no {', no '.join(missing)}")
    from whybox_service import supervisor

    ctx.exit(
        supervisor.serve(
            model_store,
            list(models) or None,
            host,
            port,
            grpc_port,
            ready_file=ready_file,
            log_dir=log_dir,
            data=data,
            max_restarts=max_restarts,
            hung_seconds=hung_seconds,
        )
    )
