"""The main job, once around: serve the demo models, explain held-out scenes, write pictures, print latencies.

Half of the scenes go over REST, half over gRPC. Everything is computed in TorchServe workers. In the end a
layout is inverted: a picture is found that a detector recognises as what one of the scenes shows.

    python examples/demo.py --out out/demo
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from whybox.scenes import render
from whybox_client import Client, Layout, LayoutObject

STORE = Path(__file__).parent.parent / "model_store"
SEED = 2_026
SCENES_PER_MODEL = 4
"""Rendered from a seed that training never sees."""
TARGETS = ["class", "x1", "y1", "x2", "y2", "combined"]
INVERTED_MODEL, INVERTED_SCENE, ITERATIONS = "retinanet-signs", 3, 300
START_SECONDS = 300
STOP_SECONDS = 60
HEADING = 52
"""Pixels above each model's part of the contact sheet."""


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--store", type=Path, default=STORE)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with served(options.store, options.out / "logs") as addresses:
        sheet = explain_scenes(addresses, options.out)
        print(f"\ncontact sheet: {sheet}\none picture a scene: {options.out}\n")
        invert_layout(addresses["rest"], options.out)
        print_latencies(addresses["rest"])
    return 0


@contextlib.contextmanager
def served(store: Path, logs: Path) -> Iterator[dict[str, str]]:
    """Run ``whybox serve`` on free ports as long as the block lasts; yields its addresses."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "whybox_client.cli", "serve", "--model-store", str(store)]
        command += ["--port", "0", "--grpc-port", "0", "--ready-file", str(ready), "--log-dir", str(logs)]
        process = subprocess.Popen(command)
        try:
            yield wait_for(ready, process)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)


def wait_for(ready: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Wait until the service says that it is ready, and return what it says.

    Raises:
        RuntimeError: if it ends or takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if ready.exists() and (text := ready.read_text()):
            addresses: dict[str, str] = json.loads(text)
            return addresses
        if process.poll() is not None:
            raise RuntimeError(f"whybox serve ended with status {process.returncode}")
        time.sleep(0.2)
    raise RuntimeError(f"whybox serve was not ready after {START_SECONDS} s")


def explain_scenes(addresses: dict[str, str], out: Path) -> Path:
    """Explain scenes with every model, over both transports; returns the contact sheet."""
    strips = []
    with Client(addresses["rest"]) as rest, Client(f"grpc://{addresses['grpc']}") as grpc:
        models = [model.name for model in rest.models()]
        jobs = [(name, index) for name in models for index in range(SCENES_PER_MODEL)]
        for name, index in tqdm(jobs, desc="explaining", unit="scene"):
            transport, client = (("REST", rest), ("gRPC", grpc))[index % 2]
            own = name.rpartition("-")[2]  # a demo model of special scenes is named after their mode
            mode = own if own in ("context", "cheat") else ("plain", "crowd")[index // 2 % 2]
            scene = render(mode, seed=SEED, index=index)
            answer = client.explain(name, scene.image, targets=TARGETS, max_detections=20)
            answer.save(out / f"{name}-{mode}-{index}-{transport.lower()}.png")
            if index == 0:
                strips.append((name, answer.picture(rows=2)))
    return save_sheet(strips, out / "contact-sheet.png")


def invert_layout(url: str, out: Path) -> None:
    """Find a picture that a detector recognises as the layout of a scene; a short run, as jobs go."""
    scene = render("plain", seed=SEED, index=INVERTED_SCENE)
    height, width = scene.image.shape[:2]
    things = [LayoutObject(thing.label, thing.box) for thing in scene.objects]
    with Client(url) as client:
        job = client.invert(
            Layout(width, height, things), model=INVERTED_MODEL, params={"iterations": ITERATIONS}, seed=SEED
        )
        result = job.wait(progress=True)
    path = out / "inversion.png"
    result.save(path)
    print(f"\n{INVERTED_MODEL} inverted in {ITERATIONS} iterations: {result.match}")
    print(f"layout, picture, what is found in it, losses: {path}\n")


def save_sheet(strips: list[tuple[str, Image.Image]], path: Path) -> Path:
    """Put the models' pictures below each other, each under its name."""
    width = max(picture.width for _, picture in strips)
    sheet = Image.new("RGB", (width, sum(picture.height + HEADING for _, picture in strips)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(HEADING * 0.6)
    top = 0
    for name, picture in strips:
        draw.text((8, top + HEADING // 5), name, "black", font)
        sheet.paste(picture, (0, top + HEADING))
        top += HEADING + picture.height
    sheet.save(path)
    return path


def print_latencies(url: str) -> None:
    """Print the latency table that Prometheus would see."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    for family, columns in (
        ("whybox_request_seconds", ("transport", "operation", "model")),
        ("whybox_stage_seconds", ("operation", "model", "stage")),
    ):
        print(f"{family:<24} {'requests':>9} {'mean, ms':>10} {'p90 below, ms':>14}")
        for key, (count, total, p90) in summaries(families, family, columns).items():
            print(f"  {' '.join(key):<40} {count:>6.0f} {1000 * total / count:>10.1f} {1000 * p90:>10.0f}")
        print()


def summaries(
    families: list[Metric], name: str, columns: tuple[str, ...]
) -> dict[tuple[str, ...], tuple[float, float, float]]:
    """Count, sum and 90th percentile's bucket of a histogram's series, successes only."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for family in families:
        for sample in family.samples if family.name == name else ():
            if sample.labels.get("code", "ok") != "ok":
                continue
            series = found.setdefault(tuple(sample.labels.get(c, "") for c in columns), {})
            series[sample.name.removeprefix(name) + sample.labels.get("le", "")] = sample.value
    rows = {}
    for key, series in found.items():
        count = series["_count"]
        if count:
            buckets = sorted((float(k[7:]), v) for k, v in series.items() if k.startswith("_bucket"))
            rows[key] = count, series["_sum"], next(le for le, seen in buckets if seen >= 0.9 * count)
    return rows


if __name__ == "__main__":
    sys.exit(main())
