"""`whybox` on the command line.

Exit codes: 0 all done; 1 an image, a recipe or the request was refused; 2 the command line is wrong; 3 the
service could not be reached or broke down.
"""

from __future__ import annotations

import click

from whybox_client.cli.detect import detect
from whybox_client.cli.explain import explain
from whybox_client.cli.failures import failure_of
from whybox_client.cli.models import models
from whybox_client.cli.serve import serve


class _OneLineErrors(click.Group):
    """Says in one line what went wrong; a traceback is for bugs."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if (failure := failure_of(error)) is None:
                raise
            raise failure from error


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="whybox", prog_name="whybox")
def main() -> None:
    """Why this box? Ask object detectors what they looked at."""


for command in (serve, models, detect, explain):
    main.add_command(command)
