"""What the benchmarks measure with: seconds of some work, and the memory that a call takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tables import print_row, print_titles
from torch import Tensor

from whybox.detectors.base import Forward, WhiteBoxDetector


def clock(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def high_water() -> float:
    """MiB of the process's largest resident set so far (Linux)."""
    # getrusage's maximum is inherited from the parent; this one starts with the program.
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak(detector: WhiteBoxDetector, image: Tensor, explain: Callable[[Forward], object] | None) -> float:
    """MiB that a call needs at its peak, beyond the loaded model.

    Args:
        detector: loaded; nothing else of its loading may be held.
        image: uint8 (H, W, 3).
        explain: done after detection, with a pass that was kept for it; None: detection alone.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading took goes back, and is not counted
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=explain is not None)
    detector.postprocess(detector.candidates(forward, 0), batch.frames[0], detector.defaults)
    if explain is not None:
        explain(forward)
    return high_water() - before


def in_own_process(name: str, what: str) -> float:
    """Run the benchmark that is running with ``--memory NAME WHAT`` afresh: a peak is never taken back."""
    command = [sys.executable, sys.argv[0], "--memory", name, what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def print_memory(names: Iterable[str], limit: float) -> None:
    """Print what ``--memory NAME detect`` and ``--memory NAME explain`` say of each name."""
    print()
    print_titles("detector", "detect, MiB", "explain, MiB", "explain over detect", "limit")
    for name in names:
        detect, explain = (in_own_process(name, what) for what in ("detect", "explain"))
        print_row(name, f"{detect:.0f}", f"{explain:.0f}", f"{explain / detect:.2f}", f"{limit:g}")
