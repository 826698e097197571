"""Run one of the studies and write its page.

Starts ``whybox serve`` on the demo models, unless --url names a service that runs.

    PYTHONPATH=examples python -m studies transfer
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from demo import STORE, served
from studies import context, losses, scale, transfer
from studies.pages import Page
from studies.running import Service

STUDIES: dict[str, tuple[Callable[[Service, Page, argparse.Namespace], None], str]] = {
    "transfer": (transfer.run, "Inversion transfer"),
    "losses": (losses.run, "What each loss needs"),
    "context": (context.run, "What comes along"),
    "scale": (scale.run, "Sizes"),
}
LOGS = Path("out") / "studies"
OUT = Path(__file__).parent.parent.parent / "docs" / "studies"


def main() -> int:
    """Run the study that is named; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--url", help="of a running service")
    parser.add_argument("--models", nargs="*", default=[], help="all that can be inverted, by default")
    parser.add_argument("--layouts", type=int, default=6, help="of transfer and losses")
    parser.add_argument("--seeds", type=int, default=20, help="of context and scale")
    parser.add_argument("--iterations", type=int, help="instead of the preset's")
    parser.add_argument("--preset", default="default", help="of transfer")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    work, title = STUDIES[options.study]
    command = f"PYTHONPATH=examples python -m studies {' '.join(sys.argv[1:])}"
    page = Page(options.out, options.study, title, command)
    if options.url:
        work(Service(options.url), page, options)
    else:
        with served(STORE, LOGS) as addresses:
            work(Service(addresses["rest"]), page, options)
    print(page.write())
    return 0


if __name__ == "__main__":
    sys.exit(main())
