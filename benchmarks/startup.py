"""How long ``import whybox_client`` takes, beyond starting Python, against its limit.

The gateway's start is measured by gateway.py.

    python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tables import print_row, print_titles

LIMIT_S = 0.15
REPEATS = 9


def main() -> None:
    """Print the table."""
    bare, imported = [], []
    for _ in range(REPEATS):  # alternating, so that whatever else the machine does hits both alike
        bare.append(run("pass"))
        imported.append(run("import whybox_client"))
    seconds = statistics.median(imported) - statistics.median(bare)
    print_titles("what", "seconds", "limit", "share of the limit")
    print_row("import whybox_client", f"{seconds:.3f}", f"{LIMIT_S:g}", f"{seconds / LIMIT_S:.2f}")


def run(code: str) -> float:
    """Seconds of a Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
