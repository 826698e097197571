"""The pages tell the truth: links lead somewhere, make targets exist, Python compiles, examples work."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "model_store/**/*.md", "benchmarks/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line it starts at, its text."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    language, start, lines = "", 0, []
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```+\s*([\w+-]*)", line)
        if fence and not inside:
            language, start, lines, inside = fence[1], number + 1, [], True
        elif fence:
            yield Block(language, start, "\n".join(lines) + "\n")
            inside = False
        elif inside:
            lines.append(line)
    assert not inside, f"{page}: the block at line {start} has no end"


@cache
def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    made: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+\s+(.*?)\s*#*$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = made.get(slug, 0)
        made[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def targets() -> set[str]:
    """Return the Makefile's targets."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/methods.md"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    links = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)", text)
    links += re.findall(r"<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", text)
    for link in links:
        if SCHEME.match(link) or link.startswith("//"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {link}"
        assert target.is_relative_to(ROOT), f"{name}: {link} leads out of the project"
        assert target.relative_to(ROOT).parts[:1] != ("out",), f"{name}: {link} is not committed"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name}: {link}"


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name: str) -> None:
    page = ROOT / name
    said = " \n".join(re.findall(r"`([^`\n]+)`", prose(page)))
    said += "\n" + "\n".join(block.text for block in blocks(page) if block.language != "python")
    named = {
        target
        for words in re.findall(r"(?:^|[\s;&|(])make((?:[ ]+[\w=./-]+)+)", said)
        for word in words.split()
        if "=" not in word
        for target in word.split("/")
    }
    assert named <= targets(), f"{name}: {named - targets()}"


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {target for target in targets() if f"`make {target}`" not in text} == set()


@pytest.mark.parametrize("name", NAMES)
def test_python_compiles(name: str) -> None:
    for block in blocks(ROOT / name):
        if block.language not in ("python", "py"):
            continue
        text = block.text
        if text.lstrip().startswith(">>>"):
            text = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
        place = f"{name}, block at line {block.line}"
        compile(text, place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def code_of(name: str, *, first: int, last: int) -> dict[str, Any]:
    """Run some of a page's blocks of Python, one after the other, and return what they define."""
    page = ROOT / "docs" / name
    code = [block for block in blocks(page) if block.language == "python"][first:last]
    assert code
    defined: dict[str, Any] = {"__name__": "worked_example"}
    for block in code:
        # Blank lines in front, so that a traceback names the page's own line.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True), defined)
    return defined


def test_the_worked_method_works() -> None:
    defined = code_of("adding-a-method.md", first=0, last=2)
    tests = [value for key, value in defined.items() if key.startswith("test_")]
    assert len(tests) == 1
    tests[0]()
    from whybox.methods import METHODS

    assert defined["Contrast"].name not in METHODS


def test_the_worked_sampling_method_works() -> None:
    defined = code_of("adding-a-method.md", first=0, last=4)
    defined["test_pieces_in_any_order_make_the_whole"]()
    from whybox.methods import METHODS

    assert defined["Disturbance"].name not in METHODS


@pytest.fixture(scope="module")
def grid() -> dict[str, Any]:
    """What `docs/adding-a-detector.md` defines, and its detector with random weights."""
    import torch

    defined = code_of("adding-a-detector.md", first=0, last=2)
    torch.manual_seed(0)
    defined["network"] = defined["GridNetwork"](3)
    defined["detector"] = defined["GridDetector"](defined["network"], ("alpha", "beta", "gamma"))
    return defined


class TestTheWorkedDetector:
    """The detector of `docs/adding-a-detector.md`."""

    @pytest.mark.parametrize("layer", ["level", "stage1"])
    def test_its_gradients_are_those_of_plain_backward_passes(self, grid: dict[str, Any], layer: str) -> None:
        import torch

        from builders import random_image
        from whybox.methods.base import scalar

        detector, network = grid["detector"], grid["network"]
        ((_, batch),) = detector.prepare([random_image(37, 50)])
        forward = detector.forward(batch, keep=True)
        rows, columns = forward.levels["level"].shape[2:]
        assert (rows, columns) == (10, 13)
        candidates = torch.tensor([0, columns - 1, 5 * columns + 6, rows * columns - 1])
        labels = torch.tensor([0, 2, 1, 1])
        names = ("class", "class:gamma", "x1", "y2")
        wanted = [scalar(name, detector.labels) for name in names]
        tap = detector.tap(forward, 0, layer, candidates, labels)

        def outputs(leaf: Any) -> Any:
            level = leaf if layer == "level" else network.stage2(leaf)
            top = network.tower(level)
            raw = {"logits": network.logits(top), "distances": network.distances(top)}
            raw = {name: value[0].flatten(1).T[candidates] for name, value in raw.items()}
            scores, sides = detector._decode(raw, detector._centres(forward)[candidates])
            from whybox.detectors.base import Outputs

            return Outputs(scores, sides, labels, raw["logits"])

        activation = (forward.levels if layer == "level" else forward.stages)[layer][0]
        plain = grid["WholeMapTap"](activation, outputs, tap.grids, tap.boxes)
        expected = {int(window.picks[0]): window for window in plain.windows(wanted)}
        assert torch.equal(outputs(activation[None]).sides, tap.boxes)
        compared = 0
        for window in tap.windows(wanted):
            for row, pick in enumerate(window.picks.tolist()):
                full = torch.zeros_like(expected[pick].gradients[0])
                x, y = window.origins[row].tolist()
                h, w = window.gradients.shape[-2:]
                top, left = max(0, y), max(0, x)
                bottom, right = min(full.shape[2], y + h), min(full.shape[3], x + w)
                inside = (slice(top - y, bottom - y), slice(left - x, right - x))
                full[:, :, top:bottom, left:right] = window.gradients[row][(..., *inside)]
                assert torch.allclose(full, expected[pick].gradients[0], rtol=1e-4, atol=1e-7)
                assert bool(expected[pick].gradients[0].any())
                compared += 1
        assert compared == len(candidates)

    def test_a_worker_serves_it(self, grid: dict[str, Any]) -> None:
        from builders import encoded, random_image
        from whybox.engine import Engine
        from whybox.recipe import Recipe
        from whybox_proto.v1 import explainer_pb2, worker_pb2

        recipe = Recipe("grid", "grid", "grid", labels=grid["detector"].labels, score_threshold=0.2)
        engine = Engine(recipe, grid["detector"])
        image = encoded(random_image(37, 50))
        for layer in ("level", "stage1"):
            asked = explainer_pb2.ExplainRequest(image=image, layer=layer, targets=["class", "combined"])
            asked.select.max_detections = 3
            (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=asked)])
            assert not reply.HasField("error"), reply.error
            assert len(reply.explain.detections) == 3
            assert len(reply.explain.heat_maps) == 6

    def test_it_loads_from_a_file(self, grid: dict[str, Any], tmp_path: Path) -> None:
        import safetensors.torch

        from whybox.recipe import Recipe

        path = tmp_path / "grid.safetensors"
        safetensors.torch.save_file(grid["network"].state_dict(), path)
        loaded = grid["load"](Recipe("grid", "grid", "grid", labels=("a", "b", "c")), path)
        assert loaded.labels == ("a", "b", "c")


def test_every_fault_that_was_tried_has_its_test() -> None:
    """Rows of reliability.md name files, and in them classes or functions, that are there."""
    table = (ROOT / "docs" / "reliability.md").read_text().partition("| what was tried |")[2]
    rows = [line for line in table.splitlines() if line.startswith("|") and line.count("|") == 4]
    named = [(row, re.findall(r"`([^`]+)`", row.split("|")[3])) for row in rows]
    checked = 0
    for row, names in named:
        path: Path | None = None
        for name in names:
            file, _, inside = name.partition("::")
            if file.endswith(".py"):
                path = ROOT / file if "/" in file else ROOT / "tests" / file
                assert path.is_file(), row
            else:
                inside = name if not name.startswith("make ") else ""
            for part in filter(None, inside.split("::")):
                assert path is not None, row
                assert re.search(rf"(def|class) {re.escape(part)}\b", path.read_text()), f"{row}: {part}"
            checked += 1
    assert checked > 50
