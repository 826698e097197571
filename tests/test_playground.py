"""The playground and the API's pages, in a real Chromium, against a live service with a trained detector."""

from __future__ import annotations

import ast
import base64
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import test_client_results
from conftest import Live, serving
from system_parts import need
from test_client_results import REASONS, TAKEN_OUT, taken_out, why_not
from test_client_streams import TestEvents as Events
from whybox_client import Client, SuppressedDetection
from whybox_client.pictures import overlay as draw_overlay
from whybox_proto import maps
from whybox_service.keys import entry_of, new_key
from whybox_service.rest.json_out import to_dict as to_json

STORE = Path(__file__).parent.parent / "model_store"
FILES = resources.files("whybox_service") / "playground"
SAMPLE = "sample-plain-0.jpg"
# The tests' limit, in milliseconds; an idle machine answers within half a second.
PATIENCE = 60_000
# Playwright does not tell forms that hold files: keep the other part of each.
KEEP_REQUESTS = """
  const ask = window.fetch;
  window.fetch = async (path, options) => {
    if (options?.body) window.lastRequest = await options.body.get("request").text();
    return ask(path, options);
  };
"""
SIDES = ["x1", "y1", "x2", "y2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of one trained detector: its maps make sense."""
    from whybox.archives import build

    folder = tmp_path_factory.mktemp("trained")
    build(STORE / "retinanet-signs.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def signs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(store, tmp_path_factory.mktemp("signs")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = need("chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[BrowserContext]:
    """A context whose pages may ask nobody but the service, and may have nothing to complain about."""
    complaints: list[str] = []
    asked: list[str] = []
    context = browser.new_context(accept_downloads=True, **options)
    context.set_default_timeout(PATIENCE)
    context.add_init_script(KEEP_REQUESTS)
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    yield context
    context.close()
    strangers = [a for a in asked if not a.startswith((f"{url}/", f"blob:{url}/", "data:"))]
    assert not strangers
    # Chromium itself logs each answer of 400 and more.
    assert not [line for line in complaints if "Failed to load resource" not in line]
    assert asked


@pytest.fixture
def page(browser: Browser, signs: Live) -> Iterator[Page]:
    with watched(browser, signs.rest, permissions=["clipboard-read", "clipboard-write"]) as context:
        opened = context.new_page()
        opened.goto(signs.rest)
        expect(opened.locator("#readiness")).to_have_text("ready")
        yield opened


def pick_sample(page: Page, file: str = SAMPLE) -> None:
    with page.expect_response(re.compile(":detect$")):
        page.locator(f'#samples button[data-address$="{file}"]').click()
    page.locator("#boxes button").first.wait_for()


def explain(page: Page, index: int = 0) -> dict[str, Any]:
    """Choose a detection, and return the service's answer."""
    with page.expect_response(re.compile(":explain$")) as response:
        page.locator(f'#list button[data-index="{index}"]').click()
    answer: dict[str, Any] = response.value.json()
    page.locator("#overlay").wait_for()
    return answer


def explained_by(page: Page, action: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do what makes the page explain anew; return what it asked and what it got."""
    with page.expect_response(re.compile(":explain$")) as response:
        action()
    return json.loads(page.evaluate("lastRequest")), response.value.json()


def overlay_alpha(page: Page) -> NDArray[np.float64]:
    """How much the heat map covers each pixel, 0 to 1: (H, W) of the overlay's canvas."""
    width, height, alphas = page.evaluate(
        """() => { const canvas = document.getElementById("overlay");
          const {width, height} = canvas;
          const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
          copy.drawImage(canvas, 0, 0);
          const {data} = copy.getImageData(0, 0, width, height);
          return [width, height, Array.from(data).filter((_, i) => i % 4 === 3)]; }"""
    )
    return np.array(alphas, float).reshape(height, width) / 255


def sample_bytes(file: str = SAMPLE) -> bytes:
    return (FILES / file).read_bytes()


class TestFiles:
    """How the files are served."""

    @pytest.mark.parametrize("path", ["/", "/playground/app.js", f"/playground/{SAMPLE}", "/docs"])
    def test_headers(self, signs: Live, path: str) -> None:
        first = httpx.get(signs.rest + path)
        assert first.status_code == 200
        policy = dict(
            part.strip().split(" ", 1) for part in first.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert first.headers["X-Content-Type-Options"] == "nosniff"
        assert first.headers["Referrer-Policy"] == "no-referrer"
        again = httpx.get(signs.rest + path, headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        other = httpx.get(signs.rest + path, headers={"If-None-Match": '"other"'})
        assert other.content == first.content
        head = httpx.head(signs.rest + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(first.content))

    @pytest.mark.parametrize(
        "path",
        ["/playground/nothing.js", "/playground/__init__.py", "/playground/..%2fapp.py", "/docs/index.html"],
    )
    def test_what_is_not_there_is_a_problem(self, signs: Live, path: str) -> None:
        answer = httpx.get(signs.rest + path)
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:whybox:error:not_found"

    def test_other_verbs_are_refused(self, signs: Live) -> None:
        answer = httpx.post(signs.rest + "/playground/app.js")
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")

    def test_every_file_is_package_data(self) -> None:
        import tomllib

        config = tomllib.loads((STORE.parent / "pyproject.toml").read_text())
        patterns = config["tool"]["setuptools"]["package-data"]["whybox_service"]
        root = Path(str(FILES)).parent
        packed = {path.name for pattern in patterns for path in root.glob(pattern)}
        there = {path.name for path in (root / "playground").iterdir() if path.is_file()}
        assert there - packed == {"__init__.py"}

    def test_samples_are_the_scenes_that_the_docs_name(self) -> None:
        from whybox.scenes import render

        samples = [f.name for f in FILES.iterdir() if f.name.endswith(".jpg")]
        assert len(samples) == 4
        for name in samples:
            _, mode, index = name.removesuffix(".jpg").split("-")
            data = sample_bytes(name)
            assert len(data) <= 40_000
            scene = render(mode, seed=2026, index=int(index)).image  # type: ignore[arg-type]
            shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
            assert np.abs(shown - scene).mean() < 8, name


class TestBoxes:
    """What the model finds."""

    def test_the_boxes_are_the_services(self, page: Page, signs: Live) -> None:
        pick_sample(page)
        with Client(signs.rest) as client:
            found = client.detect(signs.model, sample_bytes())
        assert len(found) >= 4
        boxes = page.locator("#boxes button")
        expect(boxes).to_have_count(len(found))
        frame = page.locator("#frame").bounding_box()
        assert frame
        for detection in found:
            box = page.locator(f'#boxes button[data-index="{detection.index}"]')
            expect(box).to_have_text(f"{detection.label}{detection.score:.2f}")
            place = box.bounding_box()
            assert place
            scale = frame["width"] / found.width
            shown = [
                (place["x"] - frame["x"]) / scale,
                (place["y"] - frame["y"]) / scale,
                (place["x"] + place["width"] - frame["x"]) / scale,
                (place["y"] + place["height"] - frame["y"]) / scale,
            ]
            np.testing.assert_allclose(shown, detection.box, atol=0.5)
        expect(page.locator("#status")).to_contain_text(f"{len(found)} objects")
        expect(page.locator("#list button")).to_have_count(len(found))

    def test_threshold_and_nms_are_asked_for(self, page: Page, signs: Live) -> None:
        pick_sample(page)
        with Client(signs.rest) as client:
            few = client.detect(signs.model, sample_bytes(), score_threshold=0.9)
            many = client.detect(signs.model, sample_bytes(), score_threshold=0.9, nms="none")
        assert len(few) < len(many)
        page.locator("#threshold").fill("0.9")
        expect(page.locator("#boxes button")).to_have_count(len(few))
        expect(page.locator("#threshold-value")).to_have_text("0.90")
        page.locator("#nms").select_option("none")
        expect(page.locator("#boxes button")).to_have_count(len(many))
        expect(page.locator("#nms-numbers input")).to_have_count(0)

    def test_an_upload_that_exif_turns(self, page: Page, tmp_path: Path) -> None:
        upright = Image.open(io.BytesIO(sample_bytes())).convert("RGB").crop((0, 0, 256, 200))
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90° clockwise to see it upright
        path = tmp_path / 'it\'s "turned", really.jpg'
        upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
        with page.expect_response(re.compile(":detect$")) as answer, page.expect_file_chooser() as chooser:
            page.get_by_text("Open a picture", exact=True).click()
            chooser.value.set_files(path)
        assert answer.value.json()["image"] == {"width": 256, "height": 200}
        page.locator("#boxes button").first.wait_for()
        expect(page.locator("#problem")).to_be_hidden()
        natural = page.evaluate("[picture.naturalWidth, picture.naturalHeight]")
        assert natural == [256, 200]
        shown = page.locator("#frame").bounding_box()
        assert shown
        assert shown["width"] / shown["height"] == pytest.approx(256 / 200, rel=0.01)
        # The snippet names the file as the shell must have it.
        code = page.locator("#code").inner_text()
        assert run_curl(code, path.parent)["image"] == {"width": 256, "height": 200}

    def test_a_picture_can_be_dropped_and_pasted(self, page: Page) -> None:
        data = list(sample_bytes())
        transfer = page.evaluate_handle(
            """(bytes) => { const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], "given.jpg", {type: "image/jpeg"}));
              return transfer; }""",
            data,
        )
        with page.expect_response(re.compile(":detect$")):
            page.dispatch_event("#stage", "dragover", {"dataTransfer": transfer})
            expect(page.locator("#drop")).to_be_visible()
            page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})
        expect(page.locator("#drop")).to_be_hidden()
        with page.expect_response(re.compile(":detect$")):
            page.evaluate(
                "(t) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: t}))", transfer
            )
        assert page.locator("#boxes button").count() > 3

    def test_a_picture_that_the_browser_cannot_show_still_gets_boxes(
        self, page: Page, tmp_path: Path
    ) -> None:
        path = tmp_path / "scene.tiff"
        Image.open(io.BytesIO(sample_bytes())).save(path)
        page.locator("#file").set_input_files(path)
        expect(page.locator("#problem")).to_contain_text("cannot show pictures of this kind")
        assert page.locator("#boxes button").count() > 3
        explain(page)


class TestMaps:
    """What a choice of box shows."""

    def test_the_overlay_is_hot_where_the_map_is(self, page: Page) -> None:
        pick_sample(page)
        answer = explain(page, 1)
        (heat_map,) = answer["heat_maps"]
        cells = decoded(heat_map)
        alpha = overlay_alpha(page)
        height, width = alpha.shape
        assert width == height == 1024
        reference = maps.enlarge(cells.astype(np.float32), tuple(heat_map["region"]), 256, 256)
        levels = np.sqrt(np.clip((reference - cells.min()) / (cells.max() - cells.min()), 0, 1))
        small = alpha.reshape(256, 4, 256, 4).mean((1, 3))
        inside = reference > 0
        assert np.abs(small - levels)[inside].mean() < 0.02
        hottest = np.unravel_index(small.argmax(), small.shape)
        assert reference[hottest] > 0.9 * reference.max()
        assert alpha.min() == 0
        assert page.locator("#legend-high").inner_text() == shortened(heat_map["max_value"])
        assert page.locator("#legend-low").inner_text() == shortened(heat_map["min_value"])
        expect(page.locator('#boxes button[data-index="1"]')).to_have_attribute("aria-pressed", "true")

    def test_a_click_on_a_box_explains_it(self, page: Page) -> None:
        pick_sample(page)
        areas = page.evaluate(
            "[...document.querySelectorAll('#boxes button')].map(b => b.offsetWidth * b.offsetHeight)"
        )
        smallest = areas.index(min(areas))  # nothing lies over it
        asked, answer = explained_by(page, page.locator("#boxes button").nth(smallest).click)
        assert asked["select"]["indices"] == [smallest]
        assert answer["detections"][0]["index"] in (0, smallest)
        page.locator("#overlay").wait_for()
        page.locator("#clear").click()
        expect(page.locator("#overlay")).to_be_hidden()
        assert page.locator("#boxes button[aria-pressed=true]").count() == 0

    def test_targets_change_the_picture(self, page: Page) -> None:
        pick_sample(page)
        explain(page)
        seen = [overlay_alpha(page)]
        for target in [*SIDES, "combined"]:
            asked, _ = explained_by(page, page.locator(f"#targets label:has([value={target}])").click)
            assert asked["targets"] == [target]
            name = {"x1": "Left", "y1": "Top", "x2": "Right", "y2": "Bottom"}.get(target, "Combined")
            expect(page.locator("#status")).to_contain_text(f"{name}:")
            alpha = overlay_alpha(page)
            assert all(np.abs(alpha - other).max() > 0.2 for other in seen)
            seen.append(alpha)
        explained_by(page, page.locator("#targets label:has([value=class])").click)
        asked, answer = explained_by(page, lambda: page.locator("#other").select_option("way-up"))
        assert asked["targets"] == ["class:way-up"]
        assert answer["heat_maps"][0]["target"] == "class:way-up"
        expect(page.locator("#status")).to_contain_text("Class way-up")

    def test_the_slider_changes_how_much_is_covered(self, page: Page) -> None:
        pick_sample(page)
        explain(page)
        page.mouse.move(1, 1)

        def hot() -> NDArray[np.float64]:
            shot = page.locator("#frame").screenshot()
            return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float)

        pictures = []
        for opacity in ("0", "0.5", "1"):
            page.locator("#opacity").fill(opacity)
            pictures.append(hot())
        half, full = (np.abs(picture - pictures[0]).max(2).max() for picture in pictures[1:])
        assert 30 < half < full

    def test_method_layer_and_parameters_come_from_the_description(self, page: Page, signs: Live) -> None:
        with Client(signs.rest) as client:
            (method,) = (m for m in client.model(signs.model).methods if m.name == "odam")
        pick_sample(page)
        asked, _ = explained_by(page, page.locator("#list button").first.click)
        assert asked["layer"] == method.default_layer
        assert asked["params"] == {p.name: p.default for p in method.params}
        assert page.locator("#layer option").all_inner_texts() == list(method.layers)
        assert page.locator("#targets input").count() == len(method.targets)
        asked, answer = explained_by(page, lambda: page.locator("#layer").select_option("layer2"))
        assert asked["layer"] == answer["heat_maps"][0]["layer"] == "layer2"
        smoothing = page.get_by_label("Smoothing")
        assert (smoothing.get_attribute("min"), smoothing.get_attribute("max")) == ("0", "1")

        def change() -> None:
            smoothing.fill("0.2")
            smoothing.blur()

        asked, _ = explained_by(page, change)
        assert asked["params"] == {**{p.name: p.default for p in method.params}, "smoothing": 0.2}
        smoothing.fill("7")
        smoothing.blur()
        expect(smoothing).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#param-smoothing-about")).to_contain_text("1")

    def test_forms_of_every_type_of_parameter(self, page: Page) -> None:
        described = [
            {"name": "steps", "type": "integer", "default_value": 8, "minimum": 1, "maximum": 64},
            {"name": "fast", "type": "boolean", "default_value": True},
            {"name": "baseline", "type": "string", "default_value": "blur", "choices": ["blur", "grey"]},
            {"name": "note", "type": "string", "default_value": ""},
        ]
        values = page.evaluate(
            """async (described) => {
              const {buildForm} = await import("/playground/form.js");
              const place = document.createElement("div");
              let changes = 0;
              const read = buildForm(place, "p", described, () => changes++);
              const first = read();
              place.querySelector("#p-fast").checked = false;
              place.querySelector("#p-baseline").value = "grey";
              place.querySelector("#p-steps").value = "1.5";
              for (const control of place.querySelectorAll("input, select"))
                control.dispatchEvent(new Event("change"));
              return [first, read(), changes];
            }""",
            described,
        )
        assert values == [
            {"steps": 8, "fast": True, "baseline": "blur", "note": ""},
            {"fast": False, "baseline": "grey", "note": ""},
            3,
        ]

    def test_signed_maps_keep_their_zero(self, page: Page) -> None:
        signed = {
            "data": "AP+A",
            "width": 3,
            "height": 1,
            "region": [0, 0, 3, 1],
            "min_value": -1,
            "max_value": 0.9921875,
            "signed": True,
        }
        pixels = page.evaluate(
            """async (map) => {
              const {paint, range} = await import("/playground/maps.js");
              const canvas = paint(map, [0, 0, 3, 1], 3, 1);
              return [range(map), Array.from(canvas.getContext("2d").getImageData(0, 0, 3, 1).data)];
            }""",
            signed,
        )
        ends, colors = pixels
        assert ends == [-1, 1]
        against, speaks_for, zero = colors[:4], colors[4:8], colors[8:]
        assert against == [33, 102, 172, 255]
        assert speaks_for[0] > 170
        assert speaks_for[2] < 60
        assert zero[3] < 25

    def test_all_targets_side_by_side(self, page: Page) -> None:
        pick_sample(page)
        explain(page)
        asked, _ = explained_by(page, page.locator("#compare").click)
        assert asked["targets"] == ["class", *SIDES, "combined"]
        tiles = page.locator("#tiles .tile")
        expect(tiles).to_have_count(6)
        expect(page.locator("#frame")).to_be_hidden()
        pictures = page.evaluate("[...document.querySelectorAll('.tile canvas')].map(c => c.toDataURL())")
        assert len(set(pictures)) == 6
        page.locator("#opacity").fill("0")
        bare = page.evaluate("[...document.querySelectorAll('.tile canvas')].map(c => c.toDataURL())")
        assert len(set(bare)) == 1
        asked, _ = explained_by(page, page.locator(".tile[data-target=y1]").click)
        assert asked["targets"] == ["y1"]
        expect(page.locator("#targets [value=y1]")).to_be_checked()
        page.locator("#overlay").wait_for()

    def test_the_download_is_the_picture_that_the_sdk_draws(self, page: Page, signs: Live) -> None:
        pick_sample(page)
        answer = explain(page, 1)
        with page.expect_download() as download:
            page.locator("#download").click()
        label = answer["detections"][0]["label"]
        assert download.value.suggested_filename == f"sample-plain-0-{label}-class.png"
        drawn = np.asarray(Image.open(download.value.path()).convert("RGB"), float)
        image = Image.open(io.BytesIO(sample_bytes()))
        with Client(signs.rest) as client:
            heat_map = client.explain(signs.model, sample_bytes(), indices=[1])[0]["class"]
        expected = np.asarray(draw_overlay(image, heat_map.in_image(), opacity=0.65), float)
        assert drawn.shape == expected.shape
        x1, y1, x2, y2 = (round(side) for side in answer["detections"][0]["box"])
        off = np.ones(drawn.shape[:2], bool)  # all but the lines of the box, which are drawn thinner
        off[y1 - 4 : y2 + 4, x1 - 4 : x2 + 4] = False
        off[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = True
        difference = np.abs(drawn - expected)[off]
        assert difference.mean() < 1.5
        assert np.percentile(difference, 99) < 12


def choose_sampling(page: Page, *, samples: int, seconds: float) -> None:
    """Have D-RISE draw coarse masks, within these bounds."""
    page.locator("#method").select_option("d_rise")
    for name, value in (("param-samples", samples), ("param-cells", 4), ("budget-seconds", seconds)):
        page.locator(f"#{name}").fill(str(value))
        page.locator(f"#{name}").blur()


class TestSampling:
    """Methods that draw samples: their budget, how they grow, and how they are stopped."""

    def test_the_map_grows_to_its_end(self, page: Page, signs: Live) -> None:
        pick_sample(page)
        choose_sampling(page, samples=40, seconds=100)
        with page.expect_response(re.compile(":explain$")) as response:
            page.locator("#list button").first.click()
        assert response.value.request.headers["accept"] == "text/event-stream"
        assert float(response.value.request.headers["x-request-timeout"]) >= 100
        expect(page.locator("#growth")).to_be_visible()
        expect(page.locator("#status")).to_contain_text("Class: ")
        asked = json.loads(page.evaluate("lastRequest"))
        assert asked["budget"] == {"seconds": 100}
        assert (asked["params"]["samples"], asked["params"]["cells"]) == (40, 4)
        with Client(signs.rest) as client:
            heat_map = client.explain(
                signs.model, sample_bytes(), indices=0, method="d_rise", params={"samples": 40, "cells": 4}
            ).heat_map()
        assert heat_map.samples == 40
        assert heat_map.standard_error
        error = shortened(heat_map.standard_error)
        assert page.locator("#growth-text").inner_text() == f"40 samples, standard error {error}"
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator("#growth-bar")).to_be_hidden()
        assert overlay_alpha(page).max() > 0.5
        assert page.locator("#legend-high").inner_text() == shortened(heat_map.cells.max_value)
        explained_by(page, lambda: page.locator("#method").select_option("odam"))
        expect(page.locator("#growth")).to_be_hidden()

    def test_it_can_be_stopped(self, page: Page) -> None:
        pick_sample(page)
        choose_sampling(page, samples=100_000, seconds=90)
        page.locator("#list button").first.click()
        expect(page.locator("#growth-text")).to_contain_text(re.compile(r"^[1-9]\d* samples"))
        expect(page.locator("#progress")).to_be_visible()
        assert 0 < page.evaluate("document.getElementById('growth-bar').value") < 1
        page.locator("#stop").click()
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator("#progress")).to_be_hidden()
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#growth-text")).to_contain_text("samples")
        expect(page.locator("#overlay")).to_be_visible()

    @pytest.mark.parametrize(
        ("drawing", "told"),
        [
            (True, "TypeError: a bug in drawing"),
            (False, "Error: It did not answer. Is it running?"),
        ],
        ids=["drawing", "reading"],
    )
    def test_what_breaks_off_a_stream_is_told_as_what_it_is(
        self, page: Page, drawing: bool, told: str
    ) -> None:
        caught = page.evaluate(
            """async (drawing) => {
              const { grow, Problem } = await import("/playground/api.js");
              let closed = false;
              const body = new ReadableStream({
                start(stream) {
                  stream.enqueue(new TextEncoder().encode('event: partial\\ndata: {"partial": true}\\n\\n'));
                },
                pull(stream) { if (!drawing) stream.error(new TypeError("network error")); },
                cancel() { closed = true; },
              });
              const headers = { "Content-Type": "text/event-stream" };
              window.fetch = async () => new Response(body, { headers });
              const partial = () => { if (drawing) throw new TypeError("a bug in drawing"); };
              const picture = { blob: new Blob(["x"]), name: "x" };
              const error = await grow("signs", picture, {}, undefined, partial).catch((error) => error);
              return [String(error), error instanceof Problem, closed];
            }""",
            drawing,
        )
        assert caught == [told, not drawing, drawing]

    def test_each_method_has_the_controls_that_fit(self, page: Page, signs: Live) -> None:
        with Client(signs.rest) as client:
            methods = client.model(signs.model).methods
        for method in methods:
            page.locator("#method").select_option(method.name)
            assert page.locator("#budget").is_visible() is method.sampling, method.name
            assert page.locator("#layer-field").is_visible() is bool(method.layers), method.name
            assert page.locator("#params .param").count() == len(method.params), method.name
            assert page.locator("#targets input").count() == len(method.targets), method.name
            combines = method.combines_layers and method.default_layer in method.layers
            assert page.locator("#with-field").is_visible() is combines, method.name
            labels = page.locator("#params label, #budget label").all_inner_texts()
            assert len(set(labels)) == len(labels), method.name
        assert any(method.sampling for method in methods)

    def test_layers_are_combined(self, page: Page) -> None:
        pick_sample(page)
        explain(page)
        explained_by(page, lambda: page.locator("#layer").select_option("layer2"))
        asked, answer = explained_by(page, lambda: page.locator("#with").select_option("layer3"))
        assert asked["layer"] == answer["heat_maps"][0]["layer"] == "layer2+layer3"
        assert "layer2" not in page.locator("#with option").all_inner_texts()

    def test_a_stream_that_ends_with_an_error_is_told(self, page: Page) -> None:
        pick_sample(page)
        choose_sampling(page, samples=16, seconds=100)
        lost = {"title": "The model cannot answer now", "status": 503, "detail": "a worker was lost"}
        body = f": beat\n\nevent: error\ndata: {json.dumps(lost)}\n\n"
        page.route(
            "**/*:explain",
            lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
            times=1,
        )
        page.locator("#list button").first.click()
        expect(page.locator("#problem")).to_contain_text("a worker was lost")
        expect(page.locator("#growth")).to_be_hidden()
        page.locator("#problem .again").click()
        expect(page.locator("#growth-text")).to_contain_text("16 samples")

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_events_are_read_as_the_sdk_reads_them(self, page: Page, size: int) -> None:
        stream = Events.STREAM.removeprefix(b"\xef\xbb\xbf")
        read = page.evaluate(
            """async ([bytes, size]) => {
              const {readEvents} = await import("/playground/events.js");
              const body = new ReadableStream({start(to) {
                for (let i = 0; i < bytes.length; i += size)
                  to.enqueue(new Uint8Array(bytes.slice(i, i + size)));
                to.close();
              }});
              const found = [];
              for await (const event of readEvents(body)) found.push([event.name, event.data]);
              return found;
            }""",
            [list(stream), size],
        )
        assert read == [[event.name, event.data] for event in Events.EVENTS]


class TestMissing:
    """What suppression took out, and what should have been found."""

    def test_the_reasons_are_in_the_sdks_words(self, page: Page) -> None:
        answer = test_client_results.response()
        detections = [to_json(detection) for detection in answer.detections]
        for rule, sentence in TAKEN_OUT.items():
            assert self.said(page, "whySuppressed", to_json(taken_out(rule)), detections) == sentence
        for rule in ("iou", "soft"):
            gone = taken_out(rule, None)
            sdk = SuppressedDetection.from_message(gone, ())
            assert self.said(page, "whySuppressed", to_json(gone), detections) == str(sdk)
        for reason, (fields, sentence) in REASONS.items():
            told = why_not(reason, **fields).detections.told
            assert told
            assert self.said(page, "whyNot", to_json(told[0]), "yield", detections) == sentence

    @staticmethod
    def said(page: Page, name: str, *arguments: object) -> str:
        text: str = page.evaluate(
            """async ([name, given]) => (await import("/playground/reasons.js"))[name](...given)""",
            [name, list(arguments)],
        )
        return text

    def test_what_was_suppressed_is_drawn_with_its_reason(self, page: Page, signs: Live) -> None:
        pick_sample(page)
        with Client(signs.rest) as client:
            found = client.detect(signs.model, sample_bytes(), explain_suppressed=True)
        with page.expect_response(re.compile(":detect$")):
            page.locator("#suppressed").check()
        marks = page.locator("#marks .suppressed")
        expect(marks).to_have_count(len(found.suppressed))
        titles = page.locator("#marks .suppressed title").all_text_contents()
        assert titles == [str(one) for one in found.suppressed]
        x, y = (float(marks.first.locator(".light").get_attribute(name) or "") for name in ("x", "y"))
        assert (x, y) == pytest.approx(found.suppressed[0].box[:2], abs=0.01)
        page.locator("#dropped summary").click()
        assert page.locator("#dropped li").all_inner_texts() == titles
        page.locator("#dropped li").first.hover()
        expect(marks.first).to_have_class("suppressed lit")
        code = copied(page, "python")
        assert "explain_suppressed=True" in code
        page.locator("#suppressed").uncheck()
        expect(marks).to_have_count(0)
        expect(page.locator("#dropped")).to_be_hidden()

    def test_a_drawn_box_is_asked_for(self, page: Page, signs: Live, tmp_path: Path) -> None:
        pick_sample(page)
        page.locator("#expected-label").select_option("climb")
        page.locator("#draw").click()
        frame = page.locator("#frame").bounding_box()
        assert frame

        def place(x: float, y: float) -> tuple[float, float]:
            return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

        page.mouse.move(*place(0.5, 0.6))
        page.mouse.down()
        page.mouse.move(*place(0.3, 0.5))
        with page.expect_response(re.compile(":explain$")):
            page.mouse.move(*place(0.2, 0.3))
            page.mouse.up()
        sentence = page.locator("#why-not-answer")
        expect(sentence).to_be_visible()
        asked = json.loads(page.evaluate("lastRequest"))
        box = asked["select"]["expected"]["box"]
        assert box == pytest.approx([51.2, 76.8, 128, 153.6], abs=0.6)
        with Client(signs.rest) as client:
            told = client.explain(signs.model, sample_bytes(), expected=(box, "climb")).why_not
        assert told
        assert sentence.inner_text() == str(told)
        expect(page.locator("#status")).to_have_text(str(told))
        expect(page.locator("#marks .expected")).to_have_count(1)
        expect(page.locator("#marks .candidate")).to_have_count(1 if told.candidate else 0)
        assert page.locator("#overlay").is_visible() is bool(told.heat_maps)
        assert run_python(copied(page, "python"), tmp_path).splitlines() == [str(told)]
        page.keyboard.press("Escape")
        expect(sentence).to_be_hidden()
        expect(page.locator("#overlay")).to_be_hidden()

    def test_the_sides_can_be_typed(self, page: Page) -> None:
        pick_sample(page)
        for name, value in (("left", 200), ("top", 10), ("right", 150), ("bottom", 60)):
            page.get_by_label(name.capitalize(), exact=True).fill(str(value))
        expect(page.locator("#why-not")).to_be_disabled()  # it ends before it begins
        expect(page.locator("#marks .expected")).to_have_count(0)
        page.locator("#expected-right").fill("250")
        asked, _ = explained_by(page, page.locator("#why-not").click)
        assert asked["select"]["expected"] == {"box": [200, 10, 250, 60], "label": "turn-left"}
        assert asked["targets"] == ["class"]
        expect(page.locator("#why-not-answer")).to_contain_text("candidate")
        asked, _ = explained_by(page, page.locator("#targets label:has([value=x1])").click)
        assert (asked["targets"], asked["select"]["expected"]["label"]) == (["x1"], "turn-left")
        asked, _ = explained_by(page, page.locator("#list button").first.click)
        assert "expected" not in asked["select"]
        expect(page.locator("#why-not-answer")).to_be_hidden()

    def test_how_good_a_map_is(self, page: Page, signs: Live) -> None:
        pick_sample(page)
        explain(page)
        expect(page.locator("#measures")).to_be_hidden()
        asked, answer = explained_by(page, page.locator("#evaluate").click)
        assert asked["evaluate"] is True
        values = answer["heat_maps"][0]["faithfulness"]
        assert {"deletion", "insertion"} <= set(values)
        rows = page.locator("#measures tr")
        expect(rows).to_have_count(len(values))
        with Client(signs.rest) as client:
            measures = {measure.name: measure for measure in client.model(signs.model).measures}
        row = page.locator("#measures tr", has_text="Deletion")
        expect(row).to_contain_text(f"{measures['deletion'].better} is better")
        expect(row.locator(".number")).to_have_text(shortened(values["deletion"]))
        assert row.locator("th").get_attribute("title") == measures["deletion"].protocol
        explained_by(page, page.locator("#evaluate").click)
        expect(page.locator("#measures")).to_be_hidden()

    def test_what_is_missing_is_explained_and_not_measured(self, page: Page) -> None:
        pick_sample(page)
        explain(page)
        explained_by(page, page.locator("#evaluate").click)
        for side, value in (("left", 200), ("top", 10), ("right", 250), ("bottom", 60)):
            page.locator(f"#expected-{side}").fill(str(value))
        asked, answer = explained_by(page, page.locator("#why-not").click)
        assert "evaluate" not in asked
        assert answer["why_not"]
        expect(page.locator("#evaluate")).to_be_hidden()


class TestAnswers:
    """Times, ids, problems."""

    def test_times_and_the_requests_id(self, page: Page) -> None:
        pick_sample(page)
        with page.expect_response(re.compile(":explain$")) as response:
            page.locator("#list button").first.click()
        expect(page.locator("#request-id")).to_have_text(response.value.headers["x-request-id"])
        names = page.locator("#stages th").all_inner_texts()
        assert names == [*(stage["name"] for stage in response.value.json()["stages"]), "round trip"]
        assert {"decode", "forward", "explain", "backend"} <= set(names)
        assert all(text.endswith(" ms") for text in page.locator("#stages td.number").all_inner_texts())

    def test_a_broken_file_is_told_as_text(self, page: Page, tmp_path: Path) -> None:
        path = tmp_path / "broken.jpg"
        path.write_bytes(b"no picture at all")
        with page.expect_response(re.compile(":detect$")) as response:
            page.locator("#file").set_input_files(path)
        problem = response.value.json()
        alert = page.locator("#problem")
        expect(alert).to_be_visible()
        expect(alert).to_have_attribute("role", "alert")
        for text in (problem["title"], problem["detail"], problem["field"], problem["request_id"]):
            expect(alert).to_contain_text(text)
        for part in ("expected", "got"):
            if part in problem:
                expect(alert).to_contain_text(problem[part])
        assert alert.locator(".again").count() == 0
        pick_sample(page)
        expect(alert).to_be_hidden()

    def test_what_can_be_tried_again_is(self, page: Page) -> None:
        busy = {
            "type": "urn:whybox:error:overloaded",
            "title": "More requests than can be answered",
            "status": 429,
            "detail": "the model's queue is full <b>now</b>",
            "request_id": "full-1",
            "retry_after_seconds": 1.2,
        }
        page.route(
            "**/*:detect",
            lambda route: route.fulfill(
                status=429, content_type="application/problem+json", body=json.dumps(busy)
            ),
            times=1,
        )
        page.locator("#samples button").first.click()
        alert = page.locator("#problem")
        expect(alert).to_contain_text("the model's queue is full <b>now</b>")  # text, never markup
        expect(alert).to_contain_text("wait 2 s")
        alert.get_by_role("button", name="Try again").click()
        page.locator("#boxes button").first.wait_for()
        expect(alert).to_be_hidden()

    def test_a_service_that_is_gone_is_told(self, page: Page) -> None:
        pick_sample(page)
        page.context.set_offline(True)
        page.locator("#list button").first.click()
        expect(page.locator("#problem")).to_contain_text("The service cannot be reached")
        page.context.set_offline(False)
        page.locator("#problem .again").click()
        page.locator("#overlay").wait_for()

    def test_only_the_latest_answer_counts(self, page: Page) -> None:
        pick_sample(page)
        page.evaluate("for (const each of [0, 1, 2]) document.querySelectorAll('#list button')[each].click()")
        expect(page.locator("#status")).to_contain_text(page.locator("#list button").nth(2).inner_text()[:4])
        expect(page.locator("#boxes button[aria-pressed=true]")).to_have_attribute("data-index", "2")
        expect(page.locator("#progress")).to_be_hidden()


def run_curl(code: str, folder: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    need("curl")
    script = ["bash", "-c", f"set -euo pipefail\n{code}"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=folder, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def run_python(code: str, folder: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copied(page: Page, language: str) -> str:
    page.locator(f".tabs label:has([value={language}])").click()
    page.locator("#copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    assert text.rstrip() == page.locator("#code").inner_text().rstrip()
    return text


class TestCode:
    """What is copied runs, and asks the same."""

    @pytest.mark.parametrize("kind", ["detect", "explain"])
    def test_curl(self, page: Page, tmp_path: Path, kind: str) -> None:
        pick_sample(page)
        if kind == "explain":
            page.locator("#nms-iou_threshold").fill("0.3")
            with page.expect_response(re.compile(":detect$")):
                page.locator("#nms-iou_threshold").blur()
            shown = explain(page, 1)
        answer = run_curl(copied(page, "curl"), tmp_path)
        assert len(answer["detections"]) == (
            1 if kind == "explain" else page.locator("#boxes button").count()
        )
        if kind == "explain":
            assert answer["heat_maps"] == shown["heat_maps"]

    @pytest.mark.parametrize("kind", ["detect", "explain"])
    def test_python(self, page: Page, tmp_path: Path, kind: str) -> None:
        pick_sample(page)
        if kind == "explain":
            page.locator("#nms-iou_threshold").fill("0.3")
            with page.expect_response(re.compile(":detect$")):
                page.locator("#nms-iou_threshold").blur()
            explain(page, 1)
            page.locator("#compare").click()
            expect(page.locator("#tiles .tile")).to_have_count(6)
        lines = run_python(copied(page, "python"), tmp_path).splitlines()
        labels = page.locator("#list button > :nth-child(2)").all_inner_texts()
        assert len(lines) == (1 if kind == "explain" else len(labels))
        assert labels[1 if kind == "explain" else 0] in lines[0]
        assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")

    def test_names_and_values_are_quoted(self, page: Page) -> None:
        call: dict[str, Any] = {
            "origin": "http://h",
            "model": "a b",
            "verb": "detect",
            "fields": {"select": {"labels": ['it\'s; $(x) "y"']}},
            "picture": {"name": "a;\"b\\c'.jpg", "address": ""},
            "keyed": True,
        }
        curl, python = page.evaluate(
            """async (call) => { const s = await import("/playground/snippets.js");
              return [s.asCurl(call), s.asPython(call)]; }""",
            call,
        )
        words = subprocess.run(
            ["bash", "-c", 'curl() { printf "%s\\0" "$@"; }\n' + curl],
            capture_output=True,
            text=True,
            env={"WHYBOX_API_KEY": "secret"},
            check=True,
        ).stdout.split("\0")
        assert "http://h/v1/models/a%20b:detect" in words
        assert "Authorization: Bearer secret" in words
        assert 'image=@"a;\\"b\\\\c\'.jpg"' in words
        assert f"request={json.dumps(call['fields'], separators=(',', ':'))}" in words
        literals = [node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Constant)]
        assert {call["picture"]["name"], call["fields"]["select"]["labels"][0], "a b"} <= set(literals)


class TestAccess:
    """A service that wants keys."""

    def test_a_key_is_asked_for_and_stays_out_of_the_code(
        self, browser: Browser, store: Path, tmp_path: Path
    ) -> None:
        key = new_key()
        env = {"WHYBOX_API_KEYS": str(entry_of("playground", key))}
        with (
            serving(store, tmp_path, env=env) as live,
            watched(browser, live.rest, permissions=["clipboard-read", "clipboard-write"]) as context,
        ):
            page = context.new_page()
            page.goto(live.rest)
            dialog = page.get_by_role("dialog", name="This service asks for an API key")
            expect(dialog).to_be_visible()
            expect(page.get_by_role("textbox", name="API key")).to_be_focused()
            page.keyboard.type("x" * 43)
            page.keyboard.press("Enter")
            expect(dialog.locator("#key-refused")).to_be_visible()
            page.get_by_role("textbox", name="API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
            expect(dialog).to_be_hidden()
            expect(page.locator("#problem")).to_be_hidden()
            pick_sample(page)
            explain(page)
            codes = {language: copied(page, language) for language in ("curl", "python")}
            assert "$WHYBOX_API_KEY" in codes["curl"]
            everything = page.content() + page.url + "".join(codes.values())
            everything += page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
            assert key not in everything
            assert context.cookies() == []
            keyed = {"PATH": "/usr/bin:/bin", "WHYBOX_API_KEY": key}
            assert run_curl(codes["curl"], tmp_path, keyed)["heat_maps"]
            assert run_python(codes["python"], tmp_path, keyed)
            page.reload()
            expect(dialog).to_be_visible()


class TestForEverybody:
    """Keyboard, names, narrow windows, colours."""

    def test_the_keyboard_is_enough(self, page: Page) -> None:
        def tab_to(selector: str) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                    return
            pytest.fail(f"Tab does not reach {selector}")

        tab_to("#file")
        tab_to("#samples button")
        with page.expect_response(re.compile(":detect$")):
            page.keyboard.press("Enter")
        page.locator("#boxes button").first.wait_for()
        tab_to("#boxes button")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        focused = page.evaluate("document.activeElement.dataset.index")
        assert focused == "2"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        asked, _ = explained_by(page, lambda: page.keyboard.press("Enter"))
        assert asked["select"]["indices"] == [2]
        page.locator("#overlay").wait_for()
        tab_to("#opacity")
        before = page.locator("#opacity").input_value()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#opacity").input_value() < before
        tab_to("#targets input")
        asked, _ = explained_by(page, lambda: page.keyboard.press("ArrowRight"))
        assert asked["targets"] == ["x1"]
        page.keyboard.press("Escape")
        expect(page.locator("#overlay")).to_be_hidden()

    def test_every_control_has_a_name_that_is_told(self, page: Page) -> None:
        pick_sample(page)
        explain(page)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, a, canvas, img, [role]")]
              .filter((e) => e.checkVisibility())
              .filter((e) => {
                const labels = [...(e.labels ?? [])].map((l) => l.textContent).join("");
                const by = (e.getAttribute("aria-labelledby") ?? "").split(" ")
                  .map((id) => document.getElementById(id)?.textContent ?? "").join("");
                const own = ["BUTTON", "A"].includes(e.tagName) || ["status", "alert"].includes(e.role)
                  ? e.textContent + [...e.querySelectorAll("img")].map((i) => i.alt).join("") : "";
                const decoration = e.tagName === "IMG" && e.getAttribute("alt") === "";
                return !decoration && !(e.ariaLabel || e.alt || labels || by || own).trim();
              }).map((e) => e.outerHTML.slice(0, 120))"""
        )
        assert nameless == []
        repeated = page.evaluate(
            """() => { const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
              return ids.filter((id, at) => ids.indexOf(id) !== at); }"""
        )
        assert repeated == []
        assert page.evaluate("document.documentElement.lang") == "en"
        expect(page.locator("#status")).to_have_attribute("role", "status")
        expect(page.get_by_role("radio", name="Left x1")).to_have_count(1)
        expect(page.get_by_role("slider", name="Opacity")).to_have_count(1)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out(self, browser: Browser, signs: Live, scheme: Any) -> None:
        with watched(browser, signs.rest, color_scheme=scheme) as context:
            page = context.new_page()
            page.goto(signs.rest)
            expect(page.locator("#readiness")).to_have_text("ready")
            pick_sample(page)
            explain(page)
            page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
            pairs = page.evaluate(
                """() => { const found = [];
                  const solid = (e) => { for (; e; e = e.parentElement) {
                    const color = getComputedStyle(e).backgroundColor;
                    if (!/, 0\\)$/.test(color)) return color; }
                    return getComputedStyle(document.body).backgroundColor; };
                  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                  while (walker.nextNode()) { const e = walker.currentNode.parentElement;
                    if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
                    if (e.closest(".unseen, :disabled, #boxes")) continue;
                    found.push([walker.currentNode.textContent.trim().slice(0, 30),
                      getComputedStyle(e).color, solid(e)]); }
                  return found; }"""
            )
            assert len(pairs) > 40
            for text, ink, paper in pairs:
                assert contrast(ink, paper) >= 4.5, (text, ink, paper)

    @pytest.mark.parametrize("width", [320, 600])
    def test_narrow_windows_do_not_scroll_sideways(self, browser: Browser, signs: Live, width: int) -> None:
        with watched(browser, signs.rest, viewport={"width": width, "height": 700}) as context:
            page = context.new_page()
            page.goto(signs.rest)
            expect(page.locator("#readiness")).to_have_text("ready")
            pick_sample(page)
            explain(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            explained_by(page, page.locator("#compare").click)
            expect(page.locator("#tiles .tile")).to_have_count(6)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_swagger_ui_works_offline(browser: Browser, signs: Live) -> None:
    """It shows the service's description and sends a request, with nothing from elsewhere."""
    with watched(browser, signs.rest) as context:
        page = context.new_page()
        page.goto(f"{signs.rest}/docs")
        page.locator(".opblock").first.wait_for()
        assert page.locator(".opblock").count() >= 7
        block = page.locator(".opblock", has_text="/v1/models").first
        block.click()
        block.get_by_role("button", name="Try it out").click()
        with page.expect_response(re.compile("/v1/models")) as response:
            block.get_by_role("button", name="Execute").click()
        assert response.value.status == 200
        expect(block.locator(".live-responses-table")).to_contain_text("retinanet-signs")


def decoded(heat_map: dict[str, Any]) -> NDArray[np.float64]:
    """Cells of a map in JSON, (h, w), as docs/api.md has it."""
    levels = np.frombuffer(base64.b64decode(heat_map["data"]), np.uint8).astype(float)
    low, high = heat_map["min_value"], heat_map["max_value"]
    cells: NDArray[np.float64] = low + levels / 255 * (high - low)
    return cells.reshape(heat_map["height"], heat_map["width"])


def shortened(value: float) -> str:
    """A number in three significant digits, without trailing zeros."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 10000:
        return f"{float(f'{value:.3g}'):g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent):+d}"


def contrast(ink: str, paper: str) -> float:
    """WCAG's contrast ratio of two opaque CSS colours."""

    def luminance(color: str) -> float:
        channels = [float(c) / 255 for c in re.findall(r"[\d.]+", color)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return math.fsum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
