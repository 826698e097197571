"""Typed results: maps in the image's frame, access by detection and target, pictures, JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whybox_client import Detection, Detections, Explanation, HeatMap, views
from whybox_client.images import Picture, encode
from whybox_client.results import Stage
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2, types_pb2

W, H = 64, 48
RNG = np.random.default_rng(1)
CELLS = RNG.random((6, 8)).astype(np.float32)
TARGETS = ("class", "x1")


def picture(width: int = W, height: int = H) -> Picture:
    return Picture(encode(np.full((height, width, 3), 90, np.uint8)))


def response(
    detections: int = 2, width: int = W, height: int = H, encoding: str = "f32"
) -> explainer_pb2.ExplainResponse:
    answer = explainer_pb2.ExplainResponse(
        model="signs",
        model_version="1.0",
        image=types_pb2.ImageSize(width=width, height=height),
        warnings=["careful"],
        stages=[types_pb2.Stage(name="forward", seconds=0.25)],
    )
    for i in range(detections):
        answer.detections.add(index=i, box=[8, 8, 40.5, 32], label="stop", label_id=3, score=0.98 - i / 10)
        for target in TARGETS:
            heat_map = answer.heat_maps.add(
                detection_index=i,
                target=target,
                method="odam",
                layer="fpn",
                region=[0, 0, width, height],
                signed=target == "x1",
            )
            maps.encode(CELLS - 0.5 if target == "x1" else CELLS, heat_map, encoding)
    return answer


def explanation(detections: int = 2, width: int = W, height: int = H, encoding: str = "f32") -> Explanation:
    return Explanation.from_message(
        response(detections, width, height, encoding), picture(width, height), "id-1"
    )


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return image


def test_an_answer_is_typed() -> None:
    answer = explanation()
    assert list(answer.detections) == [
        Detection(0, (8, 8, 40.5, 32), "stop", 3, 0.98),
        Detection(1, (8, 8, 40.5, 32), "stop", 3, 0.88),
    ]
    assert (answer.warnings, answer.stages) == (("careful",), (Stage("forward", 0.25),))
    assert answer.request_id == "id-1"
    assert str(answer.detections[0]) == "stop 0.98"
    assert answer.detections[-1] in answer.detections
    assert repr(answer) == "<Explanation by signs: 2 detections, 4 maps (class, x1)>"


def test_maps_are_found_by_detection_and_target() -> None:
    answer = explanation()
    heat_map = answer[1]["x1"]
    assert heat_map is answer.heat_map(1, "x1") is answer.heat_maps[3]
    assert answer.heat_map() is answer[0]["class"]
    assert (heat_map.detection, heat_map.target, heat_map.signed) == (answer.detections[1], "x1", True)
    assert [list(row) for row in answer] == [["class", "x1"], ["class", "x1"]]
    assert [row.detection for row in answer] == list(answer.detections)
    assert len(answer[:1]) == 1
    with pytest.raises(KeyError, match="there are: class, x1"):
        answer[0]["y2"]
    for wrong in (2, -3):
        with pytest.raises(IndexError, match="the answer has 2"):
            answer.heat_map(wrong)
    assert "y2" not in answer[0]


@pytest.mark.parametrize(("encoding", "tolerance"), [("f32", 0.0), ("u8", 0.5 / 255), ("png", 0.5 / 255)])
def test_cells_are_what_was_sent(encoding: str, tolerance: float) -> None:
    heat_map = explanation(encoding=encoding)[0]["class"]
    assert (heat_map.values.shape, heat_map.values.dtype) == ((6, 8), np.float32)
    assert (heat_map.height, heat_map.width) == (6, 8)
    assert np.abs(heat_map.values - CELLS).max() <= tolerance + 1e-6
    with pytest.raises(ValueError, match="read-only"):
        heat_map.values[0, 0] = 1


def test_a_map_in_the_image_is_over_its_region_only() -> None:
    answer = response(1)
    answer.heat_maps[0].region[:] = [16, 8, 32, 20]
    maps.encode(np.ones((3, 4), np.float32), answer.heat_maps[0], "f32")
    values = Explanation.from_message(answer, picture(), "").heat_map().in_image()
    expected = np.zeros((H, W), np.float32)
    expected[8:20, 16:32] = 1
    assert values.dtype == np.float32
    assert np.array_equal(values, expected)


def test_a_map_in_image_size_is_in_the_image_already() -> None:
    answer = response(1)
    full = RNG.random((H, W)).astype(np.float32)
    maps.encode(full, answer.heat_maps[0], "f32")
    assert np.allclose(Explanation.from_message(answer, picture(), "").heat_map().in_image(), full, atol=1e-6)


def test_overlay_puts_colour_where_the_map_is() -> None:
    answer = response(1)
    cells = np.zeros((6, 8), np.float32)
    cells[1, 6] = 1  # pixels x 48..56, y 8..16
    maps.encode(cells, answer.heat_maps[0], "f32")
    drawn = np.asarray(Explanation.from_message(answer, picture(), "").heat_map().overlay(opacity=1)).astype(
        int
    )
    assert drawn.shape == (H, W, 3)
    assert drawn[12, 52, 0] > 180
    assert tuple(drawn[12, 20]) == (90, 90, 90)
    assert (drawn[40:] == 90).all()
    assert (drawn[8:32, 8] == 255).all()  # the detection's box


def test_a_picture_has_a_row_for_each_detection_and_a_tile_for_each_target() -> None:
    gap, title, tile = 8, 22, (320, 240)
    for detections in (1, 2):
        sheet = explanation(detections).picture()
        assert sheet.size == (gap + 3 * (tile[0] + gap), gap + detections * (title + tile[1] + gap))
    limited = explanation(2).picture(rows=1)
    assert limited.size == (gap + 3 * (tile[0] + gap), gap + (title + tile[1] + gap) + title)


def small_object(heat: tuple[int, int]) -> Explanation:
    """An image of 640x480 with an object of 16x16 at (300, 200); the map is hot in one of 20x15 cells."""
    answer = response(1, 640, 480)
    answer.detections[0].box[:] = [300, 200, 316, 216]
    cells = np.zeros((15, 20), np.float32)
    cells[heat] = 1
    for heat_map in answer.heat_maps:
        maps.encode(cells, heat_map, "f32")
    return Explanation.from_message(answer, picture(640, 480), "")


def hot_columns(sheet: Image.Image) -> int:
    """How many columns of the first map's tile are red."""
    tile = np.asarray(sheet).astype(int)[30:270, 336:656]
    return int(((tile[..., 0] > 150) & (tile[..., 2] < 120)).any(0).sum())


def test_a_small_object_is_shown_large_and_what_explains_it_stays_in_sight() -> None:
    near, far = small_object((6, 9)), small_object((13, 2))
    assert near.picture().size == far.picture().size == explanation(1).picture().size
    assert hot_columns(near.picture()) > 4 * hot_columns(far.picture()) > 0
    x1, y1, x2, y2 = views.around(near.detections[0].box, near[0].values(), (640, 480))
    assert (x2 - x1) / (y2 - y1) == pytest.approx(640 / 480)
    assert 0 <= x1 <= 284 < 332 <= x2 <= 640
    assert 0 <= y1 <= 184 < 232 <= y2 <= 480
    assert views.around(far.detections[0].box, far[0].values(), (640, 480))[0] <= 64
    assert views.around((0, 0, 400, 400), (), (640, 480)) == (0, 0, 640, 480)
    assert views.around((700, 500, 710, 510), (), (640, 480)) == (0, 0, 640, 480)
    assert views.around((630, 470, 650, 490), (), (640, 480))[2:] == (640, 480)


def test_no_detections_make_a_picture_too() -> None:
    answer = explanation(0)
    assert answer.picture().size == (2 * 8 + 320, 2 * 8 + 22 + 240)
    assert len(answer) == 0
    with pytest.raises(IndexError, match="the answer has 0"):
        answer.heat_map()
    assert answer.detections.picture().size == (W, H)


def test_notebooks_get_png() -> None:
    answer = explanation()
    assert opened(answer._repr_png_()).size == answer.picture().size
    assert opened(answer[0]["class"]._repr_png_()).size == (W, H)
    assert opened(answer.detections._repr_png_()).size == (W, H)
    many = explanation(20)
    assert opened(many._repr_png_()).size == many.picture(rows=8).size < many.picture().size


def test_large_and_tiny_images_make_tiles_of_one_size() -> None:
    for width, height in ((4000, 3000), (4, 3)):
        assert explanation(1, width, height).picture().size == explanation(1).picture().size


def test_pictures_are_saved_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    answer = explanation()
    for name, thing in (("a.png", answer), ("b.jpg", answer[0]["x1"]), ("c.webp", answer.detections)):
        thing.save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.size == {"a.png": answer.picture().size}.get(name, (W, H))
    answer.save(str(tmp_path / "d.png"))
    with pytest.raises(ValueError, match="unknown file extension"):
        answer.save(tmp_path / "e.unknown")


def test_json_says_everything_but_pixels() -> None:
    said = json.loads(json.dumps(explanation().to_dict()))
    assert said["image"] == {"width": W, "height": H}
    assert said["detections"][1] == {
        "index": 1,
        "box": [8, 8, 40.5, 32],
        "label": "stop",
        "label_id": 3,
        "score": 0.88,
    }
    assert said["heat_maps"][1] == {
        "detection_index": 0,
        "target": "x1",
        "method": "odam",
        "layer": "fpn",
        "region": [0, 0, W, H],
        "width": 8,
        "height": 6,
        "signed": True,
        "min_value": pytest.approx(float(CELLS.min()) - 0.5, abs=1e-6),
        "max_value": pytest.approx(float(CELLS.max()) - 0.5, abs=1e-6),
    }
    assert (said["warnings"], said["request_id"]) == (["careful"], "id-1")


def test_equal_answers_are_equal_whatever_their_request() -> None:
    one = explanation()
    other = Explanation.from_message(response(), Picture(b"other bytes"), "id-2")
    assert one == other
    assert len({one, other, explanation(1)}) == 2
    assert one != Explanation.from_message(response(encoding="u8"), picture(), "id-1")


def test_results_cannot_be_changed() -> None:
    answer = explanation()
    for thing, name in ((answer, "heat_maps"), (answer.detections, "items"), (answer[0]["class"], "target")):
        with pytest.raises(AttributeError):
            setattr(thing, name, ())


def test_fields_are_documented() -> None:
    for kind in (Detection, Detections, HeatMap):
        for name in kind.__dataclass_fields__:
            if name not in ("cells", "detections", "source"):
                assert re.search(rf"\b{name}\b", kind.__doc__ or ""), f"{kind.__name__}.{name}"
