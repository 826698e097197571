"""Names of models, and of what a model offers, for the shell to complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

import click

from whybox_client import defaults

if TYPE_CHECKING:
    from whybox_client import Method, Model

# A shell waits for us at every Tab.
_PATIENCE_S = 1.0
_DEFAULT_METHOD = "odam"

_Completer: TypeAlias = Callable[[click.Context, click.Parameter, str], list[str]]


def complete_model(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """List the models of the service that begin so; none where it does not answer at once."""
    return [model.name for model in _served(ctx) if model.name.startswith(incomplete)]


def _completer(of: Callable[[Model, Method | None], Iterable[str]], separator: str = "") -> _Completer:
    """Complete a name that the model describes; where a separator joins several, the last one."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        head, joint, begun = incomplete.rpartition(separator) if separator else ("", "", incomplete)
        taken = head.split(separator) if head else []
        return [
            f"{head}{joint}{name}" for name in _names(ctx, of) if name.startswith(begun) and name not in taken
        ]

    return complete


def _names(ctx: click.Context, of: Callable[[Model, Method | None], Iterable[str]]) -> list[str]:
    """List names of the model that is meant; none where that is not known."""
    served, named = _served(ctx), ctx.params.get("model")
    meant = [model for model in served if model.name == named] if named else served
    if len(meant) != 1:
        return []
    method = ctx.params.get("method") or _DEFAULT_METHOD
    return list(of(meant[0], next((m for m in meant[0].methods if m.name == method), None)))


complete_method = _completer(lambda model, _: (method.name for method in model.methods))
complete_layer = _completer(lambda _, method: method.layers if method else (), "+")
complete_targets = _completer(lambda _, method: method.targets if method else (), ",")
complete_param = _completer(lambda _, method: (f"{p.name}=" for p in method.params) if method else ())
complete_nms = _completer(lambda model, _: (nms.kind for nms in model.nms))


def _served(ctx: click.Context) -> list[Model]:
    from whybox_client.cli import options

    parent = ctx.parent.params.get("url") if ctx.parent else None
    try:
        url = ctx.params.get("url") or parent or defaults.URL
        with ctx.scope(cleanup=False), options.connect(url, timeout=_PATIENCE_S, retries=0) as client:
            return client.models()
    except Exception:  # whatever it is, at a Tab nobody wants to read it
        return []
