"""`whybox` on the command line.

Exit codes: 0 all done; 1 an image, a recipe, a layout or the request was refused, a job failed, or `doctor`
found a problem; 2 the command line is wrong; 3 the service could not be reached or broke down, and nothing
else was wrong; 130 Ctrl-C.
"""

from __future__ import annotations

import click

from whybox_client.cli.calibrate import calibrate
from whybox_client.cli.completion import completion
from whybox_client.cli.detect import detect
from whybox_client.cli.diagnose import diagnose
from whybox_client.cli.doctor import doctor
from whybox_client.cli.evaluate import evaluate
from whybox_client.cli.explain import explain
from whybox_client.cli.failures import failure_of
from whybox_client.cli.inversions import inversions
from whybox_client.cli.invert import invert
from whybox_client.cli.jobs import jobs
from whybox_client.cli.keys import keys
from whybox_client.cli.models import models
from whybox_client.cli.serve import serve

# What a shell says of a program that SIGINT ended.
_INTERRUPTED = 128 + 2


class _OneLineErrors(click.Group):
    """Says in one line what went wrong; a traceback is for bugs."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)  # the line that ^C is on
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if (failure := failure_of(error)) is None:
                raise
            raise failure from error


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="whybox", prog_name="whybox")
def main() -> None:
    """Why this box? Ask object detectors what they looked at."""


for command in (
    *(serve, models, detect, explain, invert, inversions),
    *(evaluate, calibrate, diagnose, jobs, keys, doctor, completion),
):
    main.add_command(command)
