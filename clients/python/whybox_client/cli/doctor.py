"""`whybox doctor`: what is wrong here, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

from whybox_client.cli import options

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
_PORT = click.IntRange(1, 65535)


@click.command()
@options.url
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that `serve` is to listen at.")
@click.option("--port", type=_PORT, default=8000, show_default=True, help="Port of REST.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="Port of gRPC.")
@click.option(
    "--model-store",
    type=click.Path(file_okay=False, path_type=Path),
    default="model_store",
    show_default=True,
    help="Folder with the .mar files.",
)
@click.option(
    "--min-disk",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="How much disk is to be free.",
)
@click.option(
    "--min-memory",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="How much memory is to be free.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    ctx: click.Context,
    url: str,
    host: str,
    port: int,
    grpc_port: int,
    model_store: Path,
    min_disk: int,
    min_memory: int,
    as_json: bool,
) -> None:
    """Check this installation, this machine, and with --url a service.

    Each line is ok, a warning or a problem, with how to mend it. The exit code is 1 where there is a problem.
    """
    from whybox_client.doctor import Wanted, examine

    asked = ctx.get_parameter_source("url") is not ParameterSource.DEFAULT
    wanted = Wanted(
        url if asked else None, model_store, host, (port, grpc_port), min_disk << 20, min_memory << 20
    )
    findings = []
    for finding in examine(wanted, options.connect):
        findings.append(finding)
        if as_json:
            continue
        click.echo(
            f"{click.style(finding.state.ljust(7), _COLOURS[finding.state])}  {finding.check}: {finding.says}"
        )
        if finding.mend:
            click.echo(f"{'':7}  to mend it: {finding.mend}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    ctx.exit(1 if any(finding.state == "problem" for finding in findings) else 0)
