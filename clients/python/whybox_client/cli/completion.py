"""`whybox completion`: the script that teaches a shell to complete our command lines."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

_SETUP = {
    "bash": 'eval "$(whybox completion bash)"          in ~/.bashrc',
    "zsh": 'eval "$(whybox completion zsh)"           in ~/.zshrc',
    "fish": "whybox completion fish | source           in ~/.config/fish/config.fish",
}


@click.command(epilog="\b\n" + "\n".join(_SETUP.values()))
@click.argument("shell", type=click.Choice(list(_SETUP)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, files and the names of served models."""
    kind = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    click.echo(kind(ctx.find_root().command, {}, "whybox", "_WHYBOX_COMPLETE").source())
