"""Names of models, for the shell to complete."""

from __future__ import annotations

import click

from whybox_client import defaults

# A shell waits for us at every Tab.
_PATIENCE_S = 1.0


def complete_model(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """List the models of the service that begin so; none where it does not answer at once."""
    from whybox_client.cli import options

    parent = ctx.parent.params.get("url") if ctx.parent else None
    try:
        url = ctx.params.get("url") or parent or defaults.URL
        with ctx.scope(cleanup=False), options.connect(url, timeout=_PATIENCE_S, retries=0) as client:
            return [model.name for model in client.models() if model.name.startswith(incomplete)]
    except Exception:  # whatever it is, at a Tab nobody wants to read it
        return []
