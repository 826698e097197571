"""A short soak of the service; `make soak` runs the long one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from conftest import Live

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import soak

REQUESTS = int(os.environ.get("WHYBOX_SOAK_REQUESTS", "300"))


def test_nothing_is_lost_and_nothing_leaks(live: Live) -> None:
    # So few requests say nothing about memory: the allocators are still warming up.
    rounds = soak.ROUNDS if REQUESTS >= 5000 else 10
    moments, ends = soak.soak(live, REQUESTS, rounds)
    assert sum(ends.values()) >= min(REQUESTS, rounds * len(soak.kinds()))
    assert soak.faults(moments, ends, memory=REQUESTS >= 5000) == []
