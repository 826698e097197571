"""Names of models, of what a model offers, and of inversions, for the shell to complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import click

from whybox_client import defaults

if TYPE_CHECKING:
    from whybox_client import Client, Method, Model

T = TypeVar("T")

# A shell waits for us at every Tab.
_PATIENCE_S = 1.0
_DEFAULT_METHOD = "odam"
_MOST_INVERSIONS = 50

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


complete_preset = _completer(
    lambda model, _: (preset.name for preset in model.inversion.presets) if model.inversion else ()
)
complete_inversion_param = _completer(
    lambda model, _: (f"{p.name}=" for p in model.inversion.params) if model.inversion else ()
)


def complete_inversion(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """List the ids of the newest inversions that begin so; none where the service does not answer at once."""
    found = _asked(ctx, lambda client: [job.id for job in islice(client.inversions(), _MOST_INVERSIONS)])
    return [one for one in found or () if one.startswith(incomplete)]


def _served(ctx: click.Context) -> list[Model]:
    return _asked(ctx, lambda client: client.models()) or []


def _asked(ctx: click.Context, ask: Callable[[Client], T]) -> T | None:
    """Ask the service that is meant; None where it does not answer at once."""
    from whybox_client.cli import options

    parent = ctx.parent.params.get("url") if ctx.parent else None
    try:
        url = ctx.params.get("url") or parent or defaults.URL
        with ctx.scope(cleanup=False), options.connect(url, timeout=_PATIENCE_S, retries=0) as client:
            return ask(client)
    except Exception:  # whatever it is, at a Tab nobody wants to read it
        return None
