"""Layouts: the contract's JSON, COCO's, and what is neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from whybox_client import GroundTruth, Layout, LayoutObject, coco
from whybox_proto import rle
from whybox_proto.v1 import types_pb2

W, H = 8, 6
PLAIN: dict[str, Any] = {
    "width": W,
    "height": H,
    "objects": [{"label": "stop", "box": [1, 2, 4.5, 6]}, {"label": "yield", "box": [0, 0, 8, 3]}],
}


def mask(rows: slice, columns: slice) -> np.ndarray:
    made = np.zeros((H, W), bool)
    made[rows, columns] = True
    return made


MASK = mask(slice(1, 4), slice(2, 7))


class TestJson:
    def test_a_layout_is_read(self) -> None:
        layout = Layout.from_dict(PLAIN)
        assert (layout.width, layout.height) == (W, H)
        assert layout.objects == (
            LayoutObject("stop", (1, 2, 4.5, 6)),
            LayoutObject("yield", (0, 0, 8, 3)),
        )
        assert layout == Layout.from_json(json.dumps(PLAIN))
        assert layout.to_dict() == PLAIN
        assert Layout.of(layout) is layout
        assert Layout.of(PLAIN) == layout

    def test_it_travels_whole(self) -> None:
        counts = rle.encode(MASK)
        layout = Layout(W, H, [LayoutObject("stop", mask=MASK), LayoutObject("yield", [0, 0, 1, 1], counts)])
        message = layout.to_message()
        assert message == types_pb2.Layout(
            width=W,
            height=H,
            objects=[
                types_pb2.LayoutObject(label="stop", box=[2, 1, 7, 4], mask=counts),
                types_pb2.LayoutObject(label="yield", box=[0, 0, 1, 1], mask=counts),
            ],
        )
        back = Layout.from_message(message)
        assert [one.mask for one in back.objects] == [counts, counts]
        assert Layout.from_dict(layout.to_dict()).to_message() == message

    def test_what_the_service_prints_is_read_too(self) -> None:
        """Fields at their defaults are printed."""
        thing = {"label": "stop", "box": [1, 1, 2, 2], "mask": "", "evidence": ""}
        layout = Layout.from_dict({**PLAIN, "objects": [thing]})
        assert layout.objects == (LayoutObject("stop", (1, 1, 2, 2)),)

    def test_evidence_makes_it_the_truth(self) -> None:
        counts = rle.encode(MASK)
        thing = {"label": "stop", "mask": counts, "evidence": counts}
        (one,) = Layout.from_dict({**PLAIN, "objects": [thing]}).objects
        assert isinstance(one, GroundTruth)
        assert one.evidence == counts

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"width": 0}, r"width: expected a whole number of pixels above 0; got 0"),
            ({"height": 2.5}, r"height: expected a whole number"),
            ({"height": "6"}, r"height: expected a whole number of pixels above 0; got '6'"),
            ({"width": True}, r"width: expected a whole number"),
            ({"width": None}, r"width: expected a whole number of pixels above 0; got nothing"),
            ({"size": [8, 6]}, r"size: there is no such field; expected width, height, objects"),
            ({"objects": None}, r"objects: expected a list of objects; got nothing"),
            ({"objects": "stop"}, r"objects: expected a list of objects"),
            ({"objects": ["stop"]}, r"objects\[0\]: expected an object with a label and a box; got 'stop'"),
            ({"objects": [{"box": [0, 0, 1, 1]}]}, r"objects\[0\]\.label: expected the name of a class"),
            ({"objects": [{"label": 3, "box": [0, 0, 1, 1]}]}, r"objects\[0\]\.label: .* got 3"),
            (
                {"objects": [PLAIN["objects"][0], {"label": "stop"}]},
                r"objects\[1\]\.box: expected four numbers \[x1, y1, x2, y2\]; got nothing",
            ),
            ({"objects": [{"label": "a", "box": [0, 0, 1]}]}, r"objects\[0\]\.box: expected four numbers"),
            ({"objects": [{"label": "a", "box": [0, 0, 1, "2"]}]}, r"objects\[0\]\.box: "),
            ({"objects": [{"label": "a", "box": [0, 0, 1, float("nan")]}]}, r"objects\[0\]\.box: "),
            ({"objects": [{"label": "a", "bbox": [0, 0, 1, 1]}]}, r"objects\[0\]\.bbox: there is no such"),
            ({"objects": [{"label": "a", "mask": [1, 2]}]}, r"objects\[0\]\.mask: expected COCO run-length"),
        ],
    )
    def test_what_is_none_names_the_field(self, change: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=f"^{told}"):
            Layout.from_dict({**PLAIN, **change})

    @pytest.mark.parametrize(
        ("text", "told"), [("{", "not JSON"), ("[1]", "expected an object"), (b"\xff", "not JSON")]
    )
    def test_what_is_no_json(self, text: str, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            Layout.from_json(text)

    def test_what_cannot_be_sent_is_named(self) -> None:
        for thing, told in (
            (LayoutObject("stop"), r"objects\[0\]: an object has a box, or a mask"),
            (LayoutObject("stop", mask=MASK[1:]), r"objects\[0\]: a mask has the shape"),
            (LayoutObject("stop", mask=MASK & False), r"objects\[0\]: the mask is empty"),
        ):
            with pytest.raises(ValueError, match=told):
                Layout(W, H, [thing]).to_message()
        with pytest.raises(ValueError, match="width: "):
            Layout(-1, H, []).to_message()
        with pytest.raises(TypeError, match="a layout is a Layout, or a dictionary"):
            Layout.of([1])  # type: ignore[arg-type]

    def test_boxes_only(self) -> None:
        layout = Layout(W, H, [LayoutObject("stop", mask=MASK)]).boxes_only()
        assert layout.objects == (LayoutObject("stop", (2, 1, 7, 4)),)
        assert layout.objects[0].mask is None


INSTANCES: dict[str, Any] = {
    "images": [{"id": 5, "width": W, "height": H}, {"id": 6, "width": 100, "height": 80}],
    "categories": [{"id": 1, "name": "stop"}, {"id": 9, "name": "yield"}],
    "annotations": [
        {"image_id": 5, "category_id": 9, "bbox": [1, 2, 3.5, 4]},
        {"image_id": 6, "category_id": 1, "bbox": [10, 10, 20, 20]},
        {"image_id": 5, "category_id": 1, "bbox": [0, 0, 8, 6], "iscrowd": 1},
    ],
}


def annotated(**members: Any) -> dict[str, Any]:
    annotation = {"image_id": 5, "category_id": 1, "bbox": [0, 0, 2, 2], **members}
    return {**INSTANCES, "annotations": [annotation]}


class TestCoco:
    def test_boxes_become_corners_and_crowds_are_no_objects(self) -> None:
        layout = Layout.from_coco(INSTANCES, 5)
        assert layout == Layout(W, H, (LayoutObject("yield", (1, 2, 4.5, 6)),))

    def test_an_id_may_be_text(self) -> None:
        assert Layout.from_coco(INSTANCES, "6").objects[0].label == "stop"

    def test_a_file_is_read_by_what_is_in_it(self, tmp_path: Path) -> None:
        theirs, ours = tmp_path / "coco.json", tmp_path / "layout.json"
        theirs.write_text(json.dumps(INSTANCES))
        ours.write_text(json.dumps(PLAIN))
        assert Layout.load(theirs, 5) == Layout.from_coco(theirs, 5) == Layout.from_coco(INSTANCES, 5)
        assert Layout.load(str(ours)) == Layout.from_dict(PLAIN)
        with pytest.raises(ValueError, match="image_id: goes with COCO"):
            Layout.load(ours, 5)
        with pytest.raises(FileNotFoundError):
            Layout.load(tmp_path / "none.json")

    def test_one_image_needs_no_id(self) -> None:
        assert len(Layout.from_coco({**INSTANCES, "images": INSTANCES["images"][1:]}).objects) == 1

    @pytest.mark.parametrize(
        ("bbox", "box"),
        [
            ([-0.4, -0.9, 3, 4], (0, 0, 2.6, 3.1)),
            ([6, 4, 2.5, 2.9], (6, 4, 8, 6)),
            ([-1, 0, 3, 4], (-1, 0, 2, 4)),  # more than COCO's own rounding: the service refuses it
            ([6, 4, 3, 2], (6, 4, 9, 6)),
        ],
    )
    def test_a_side_hardly_beyond_the_border_ends_there(self, bbox: list[float], box: tuple[float]) -> None:
        (one,) = Layout.from_coco(annotated(bbox=bbox), 5).objects
        assert one.box == pytest.approx(box)

    def test_masks_of_every_kind(self) -> None:
        counts = rle.encode(MASK)
        runs = [int(n) for n in rle.runs(counts, H, W)]
        square = [2, 1, 7, 1, 7, 4, 2, 4]
        for segmentation in (
            {"size": [H, W], "counts": counts},
            {"size": [H, W], "counts": runs},
            [square],
            [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 7, 1, 7, 4, 4, 4]],
        ):
            (one,) = Layout.from_coco(annotated(segmentation=segmentation), 5).objects
            assert one.mask == counts
        without_box = annotated(segmentation=[square])
        del without_box["annotations"][0]["bbox"]
        assert Layout.from_coco(without_box, 5).to_message().objects[0].box == [2, 1, 7, 4]

    def test_no_mask(self) -> None:
        for segmentation in (None, [], [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]):  # the last holds no pixel's centre
            (one,) = Layout.from_coco(annotated(segmentation=segmentation), 5).objects
            assert one.mask is None

    @pytest.mark.parametrize(
        ("data", "image_id", "told"),
        [
            (INSTANCES, None, r"image_id: expected one of 2 images \(5, 6\); got nothing"),
            (INSTANCES, 7, r"image_id: expected one of 2 images \(5, 6\); got 7"),
            ({**INSTANCES, "images": None}, 5, "images: expected a list of objects"),
            ({**INSTANCES, "categories": {}}, 5, "categories: expected a list of objects"),
            ({**INSTANCES, "images": [{"id": 5, "width": W}]}, 5, r"images\[0\]\.height: expected a whole"),
            (annotated(category_id=3), 5, r"annotations\[0\]\.category_id: expected the id .* got 3"),
            (annotated(bbox=[1, 2, 3]), 5, r"annotations\[0\]\.bbox: expected four numbers \[x, y, width"),
            (annotated(bbox=None), 5, r"annotations\[0\]\.bbox: .* got nothing"),
            (annotated(segmentation=[[1, 2, 3, 4]]), 5, r"annotations\[0\]\.segmentation: a polygon is"),
            (annotated(segmentation=[["a"] * 6]), 5, r"annotations\[0\]\.segmentation: "),
            (annotated(segmentation=3), 5, r"annotations\[0\]\.segmentation: "),
            (
                annotated(segmentation={"size": [W, H]}),
                5,
                r"annotations\[0\]\.segmentation\.size: .* \[6, 8\]",
            ),
            (
                annotated(segmentation={"size": [H, W], "counts": [3, 4]}),
                5,
                r"annotations\[0\]\.segmentation\.counts: expected .* 48 pixels",
            ),
            (annotated(segmentation={"size": [H, W], "counts": "zz"}), 5, r".*segmentation\.counts: "),
            (annotated(segmentation={"size": [H, W]}), 5, r".*segmentation\.counts: "),
        ],
    )
    def test_what_is_wrong_names_the_field(self, data: Any, image_id: Any, told: str) -> None:
        with pytest.raises(ValueError, match=f"^{told}"):
            Layout.from_coco(data, image_id)


class TestPolygons:
    def test_pixels_with_their_centre_inside(self) -> None:
        square = coco.filled([1, 1, 3, 1, 3, 3, 1, 3], 4, 5)
        assert np.array_equal(np.argwhere(square), [[1, 1], [1, 2], [2, 1], [2, 2]])
        # Below the diagonal of 4 x 4: of row r the centres at x < r + 0.5 lie inside.
        triangle = coco.filled([0, 0, 4, 4, 0, 4], 4, 4)
        assert np.array_equal(triangle, np.tril(np.ones((4, 4), bool), -1))

    def test_what_passes_the_border_is_cut(self) -> None:
        assert coco.filled([-5, -5, 50, -5, 50, 50, -5, 50], 3, 4).all()
        assert not coco.filled([-5, -5, -1, -5, -1, 50], 3, 4).any()

    def test_a_hole_is_none(self) -> None:
        """Even-odd: a square run through twice, the second time smaller."""
        ring = coco.filled([0, 0, 6, 0, 6, 6, 0, 6, 0, 0, 2, 2, 4, 2, 4, 4, 2, 4, 2, 2], 6, 6)
        assert ring.sum() == 32
        assert not ring[2:4, 2:4].any()

    def test_cocos_own_code_agrees(self) -> None:
        """It draws the outline too, so that it is at most half a pixel larger all around."""
        rng = np.random.default_rng(5)
        for _ in range(5):
            angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
            radii = rng.uniform(60, 110, 9)
            corners = np.stack([128 + radii * np.cos(angles), 128 + radii * np.sin(angles)], 1).ravel()
            ours = coco.filled(corners.tolist(), 256, 256)
            (encoded,) = coco_mask.frPyObjects([corners.tolist()], 256, 256)
            theirs = rle.decode(encoded["counts"].decode(), 256, 256)
            assert (ours & theirs).sum() / (ours | theirs).sum() > 0.98


def test_a_layout_has_a_picture(tmp_path: Path) -> None:
    layout = Layout(
        160, 120, [LayoutObject("stop", (10, 10, 60, 60)), LayoutObject("yield", mask=np.eye(120, 160) > 0)]
    )
    drawn = np.asarray(layout.picture())
    assert drawn.shape == (120, 160, 3)
    assert tuple(drawn[5, 150]) == (112, 112, 112)
    assert tuple(drawn[35, 10]) == (238, 119, 51)  # the first label's colour
    blue = drawn[100, 100].astype(int)
    assert blue[2] > blue[0] + 40  # the mask, half in the second's
    layout.save(tmp_path / "layout.png")
    assert layout._repr_png_()[:4] == b"\x89PNG"
