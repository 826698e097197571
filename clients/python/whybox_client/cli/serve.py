"""`whybox serve`: TorchServe and the gateway as one process tree."""

from __future__ import annotations

from pathlib import Path

import click

from whybox_client.cli.failures import needs_extra

_PORT = click.IntRange(1, 65535)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=_PORT, default=8000, show_default=True, help="Port of REST.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="Port of gRPC.")
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
    help="File that is written once the service can answer.",
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
) -> None:
    """Serve the models of a folder over REST and gRPC until Ctrl-C."""
    try:
        from whybox_service import supervisor
    except ImportError as error:
        raise needs_extra("serve", error) from error
    ctx.exit(
        supervisor.serve(model_store, list(models) or None, host, port, grpc_port, ready_file=ready_file)
    )
