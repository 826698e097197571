"""Typed results: maps in the image's frame, access by detection and target, pictures, JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from whybox_client import (
    Detection,
    Detections,
    Evaluation,
    Evaluations,
    Explanation,
    HeatMap,
    SuppressedDetection,
    WhyNot,
    views,
)
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


class TestHowFarAndHowGood:
    """Samples, standard errors, faithfulness."""

    def test_samples_are_told(self) -> None:
        answer = response()
        for heat_map, samples, error in zip(
            answer.heat_maps, (40, 30, 40, 40), (0.1, 0.2, 0, 0), strict=True
        ):
            heat_map.samples, heat_map.standard_error = samples, error
        answer.heat_maps[3].ClearField("standard_error")
        read = Explanation.from_message(answer, picture(), "")
        assert [m.samples for m in read.heat_maps] == [40, 30, 40, 40]
        assert [m.standard_error for m in read.heat_maps] == [0.1, 0.2, 0, None]
        assert (read.samples, read.standard_error) == (30, 0.2)
        assert read.convergence == "30 samples, standard error 0.2"
        assert "30 samples, standard error 0.2" in repr(read)
        assert read.final
        said = json.loads(json.dumps(read.to_dict()))["heat_maps"]
        assert (said[0]["samples"], said[0]["standard_error"]) == (40, 0.1)
        assert read.picture().height == explanation().picture().height + 22  # a footer

    def test_methods_that_draw_nothing_say_nothing(self) -> None:
        read = explanation()
        assert (read.samples, read.standard_error, read.convergence) == (None, None, "")
        assert not {"samples", "standard_error", "faithfulness"} & set(read.to_dict()["heat_maps"][0])

    def test_faithfulness_is_by_name(self) -> None:
        answer = response()
        answer.heat_maps[1].faithfulness.update({"insertion": 0.7, "deletion": 0.1})
        read = Explanation.from_message(answer, picture(), "")
        assert read[0]["x1"].faithfulness == {"deletion": 0.1, "insertion": 0.7}
        assert read[0]["class"].faithfulness == {}
        assert read.to_dict()["heat_maps"][1]["faithfulness"] == {"deletion": 0.1, "insertion": 0.7}
        assert len({read, explanation()}) == 2

    def test_evaluations_are_by_map_and_measure(self) -> None:
        answer = explainer_pb2.EvaluateResponse(explanation=response())
        for index, target in ((0, "class"), (1, "x1")):
            one = answer.evaluations.add(detection_index=index, target=target)
            one.values.update({"odi": 0.3, "deletion": 0.5 + index / 4})
        read = Evaluations.from_message(answer, picture(), "id-1")
        assert [(e.detection.index, e.target) for e in read] == [(0, "class"), (1, "x1")]
        assert read[1].heat_map is read.explanation[1]["x1"]
        assert read.of(1, "x1").values == {"deletion": 0.75, "odi": 0.3}
        assert read.measures == ("deletion", "odi")
        assert len(read[:1]) == 1
        with pytest.raises(KeyError, match="no map of 'y1' of detection 0"):
            read.of(target="y1")
        assert read.rows()[1] == {
            "detection": 1,
            "label": "stop",
            "score": 0.88,
            "target": "x1",
            "deletion": 0.75,
            "odi": 0.3,
        }
        said = json.loads(json.dumps(read.to_dict()))
        assert said["evaluations"][0]["values"] == {"deletion": 0.5, "odi": 0.3}
        answer.evaluations.add(detection_index=0, target="y2")
        with pytest.raises(ValueError, match="has no map of 'y2'"):
            Evaluations.from_message(answer, picture(), "")


EXPECTED = types_pb2.Expected(box=[30, 20, 60, 44], label="yield")
TAKEN_OUT = {
    "iou": "yield 0.55 overlaps detection 0 (stop 0.98): IoU 0.72",
    "soft": "yield 0.55 overlaps detection 0 (stop 0.98), so that its score fell below the final threshold: "
    "IoU 0.72",
    "same_object": "yield 0.55 is the same object as detection 0 (stop 0.98): IoU 0.72, correlation of the "
    "maps 0.91",
    "same_evidence": "yield 0.55 rests on the same evidence as detection 0 (stop 0.98): IoU 0.72, "
    "correlation of the maps 0.91",
}


def taken_out(rule: str, by_index: int | None = 0) -> types_pb2.SuppressedDetection:
    made = types_pb2.SuppressedDetection(
        box=[9, 9, 40, 30], label="yield", score=0.55, by_index=by_index, iou=0.72, rule=rule
    )
    if rule.startswith("same_"):
        made.correlation = 0.91
    return made


class TestSuppressed:
    """What suppression took out says why."""

    @pytest.mark.parametrize("rule", list(TAKEN_OUT))
    def test_a_sentence_for_every_rule(self, rule: str) -> None:
        answer = response()
        answer.suppressed.append(taken_out(rule))
        read = Explanation.from_message(answer, picture(), "")
        (one,) = read.suppressed
        assert str(one) == TAKEN_OUT[rule]
        assert (one.by, one.rule) == (read.detections[0], rule)
        assert one.correlation == (0.91 if rule.startswith("same_") else None)
        assert json.loads(json.dumps(read.to_dict()))["suppressed"] == [one.to_dict()]

    def test_what_a_selection_left_out_can_suppress_too(self) -> None:
        answer = response()
        answer.suppressed.append(taken_out("iou", None))
        (one,) = Explanation.from_message(answer, picture(), "").suppressed
        assert (one.by, one.by_index) == (None, None)
        assert str(one) == "yield 0.55 overlaps a better box that is not in the answer: IoU 0.72"

    def test_a_score_that_is_too_low_by_itself(self) -> None:
        answer = response()
        answer.suppressed.append(taken_out("soft", None))
        (one,) = Explanation.from_message(answer, picture(), "").suppressed
        assert str(one) == "yield 0.55 has a score below the final threshold"

    def test_every_rule_of_the_contract_has_its_sentence(self) -> None:
        text = (Path(__file__).parent.parent / "proto/whybox_proto/v1/types.proto").read_text()
        message = text[text.index("message SuppressedDetection") :].partition("}")[0]
        assert set(re.findall(r"(?:// |\| )(\w+) \(", message)) == set(TAKEN_OUT)

    def test_boxes_are_drawn_dashed(self) -> None:
        answer = response(0)
        answer.suppressed.append(taken_out("iou", None))
        bare = np.asarray(explanation(0).detections.picture()).astype(int)
        drawn = np.asarray(Explanation.from_message(answer, picture(), "").detections.picture()).astype(int)
        changed = np.abs(drawn - bare).max(2) > 0
        rows, columns = np.nonzero(changed)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (9, 9, 40, 30)
        assert not changed[14:25, 14:35].any()
        top = drawn[9, 9:40].sum(1)
        assert len(set(top.tolist())) == 2  # dashes and what is between them


def why_not(reason: str, **fields: Any) -> WhyNot:
    told = types_pb2.WhyNot(reason=reason, **fields)
    if reason != "no_candidate":
        candidate = types_pb2.Detection(index=9, box=[31, 20, 60, 43], label="yield", label_id=1, score=0.21)
        told.candidate.CopyFrom(candidate)
        told.expected_iou = 0.77
        for target in TARGETS:
            heat_map = told.heat_maps.add(target=target, method="odam", region=[0, 0, W, H])
            maps.encode(CELLS, heat_map, "f32")
    answer = response()
    del answer.heat_maps[:]
    answer.why_not.CopyFrom(told)
    read = Explanation.from_message(answer, picture(), "", EXPECTED)
    assert read.why_not is not None
    return read.why_not


BEST = "The best candidate (yield 0.21, IoU 0.77 with the expected box)"
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "found": (
        {"by_index": 1},
        "It is in the answer, as detection 1 (stop 0.88), IoU 0.77 with the expected box.",
    ),
    "score": ({"score_threshold": 0.3}, f"{BEST} is below the score threshold 0.30."),
    "suppressed": (
        {"by_index": 0, "suppressed": taken_out("iou")},
        f"{BEST} overlaps detection 0 (stop 0.98): IoU 0.72.",
    ),
    "outscored": (
        {"by_label": "stop", "by_score": 0.6},
        f"{BEST} is taken for 'stop', which scores 0.60.",
    ),
    "limit": ({}, f"{BEST} is not in the answer, because better ones filled it."),
    "filtered": ({}, f"{BEST} is left out by the selection."),
    "no_candidate": ({}, "The model has no candidate for 'yield' near the expected box."),
}


class TestWhyNot:
    """What became of an object that was expected."""

    @pytest.mark.parametrize("reason", list(REASONS))
    def test_a_sentence_for_every_reason(self, reason: str) -> None:
        fields, sentence = REASONS[reason]
        told = why_not(reason, **fields)
        assert str(told) == sentence
        assert (told.reason, told.expected_box, told.expected_label) == (reason, (30, 20, 60, 44), "yield")
        said = json.loads(json.dumps(told.to_dict()))
        assert (said["reason"], said["sentence"]) == (reason, sentence)
        assert opened(told._repr_png_()).size == told.picture().size

    def test_every_reason_of_the_contract_has_its_sentence(self) -> None:
        text = (Path(__file__).parent.parent / "proto/whybox_proto/v1/types.proto").read_text()
        message = text[text.index("message WhyNot") :].partition("string reason")[0]
        said = message.partition("as the expected label")[2].partition("\n")[2].partition("candidate = 1;")[2]
        named = set(re.findall(r"(?://|\|) (\w+)(?= [(|]|\n)", said))
        assert named == set(REASONS)

    def test_maps_are_those_of_the_candidate(self, tmp_path: Path) -> None:
        told = why_not("score")
        heat_map = told.heat_map("x1")
        assert heat_map.detection is told.candidate
        assert np.array_equal(heat_map.values, CELLS)
        assert heat_map.overlay().size == (W, H)
        with pytest.raises(KeyError, match="there are: class, x1"):
            told.heat_map("y1")
        with pytest.raises(KeyError, match="there are: none"):
            why_not("no_candidate").heat_map()
        told.save(tmp_path / "why-not.png")
        with Image.open(tmp_path / "why-not.png") as image:
            assert image.size == told.picture().size == (8 + 3 * 328, 8 + 22 + 240 + 8 + 22)
        assert why_not("no_candidate").picture().width == 8 + 328

    def test_an_explanation_shows_it(self) -> None:
        told = why_not("limit")
        answer = response()
        answer.why_not.CopyFrom(told.detections.told[0])  # type: ignore[index]
        read = Explanation.from_message(answer, picture(), "", EXPECTED)
        assert read.picture().size == told.picture().size
        assert read.to_dict()["why_not"]["reason"] == "limit"
        assert explanation().why_not is None
        assert "why_not" not in explanation().to_dict()

    def test_what_contradicts_itself_cannot_be_read(self) -> None:
        for told in (
            types_pb2.WhyNot(reason="found", by_index=7),
            types_pb2.WhyNot(reason="no_candidate", heat_maps=[types_pb2.HeatMap(region=[0, 0, 1, 1])]),
        ):
            answer = response()
            answer.why_not.CopyFrom(told)
            with pytest.raises((IndexError, ValueError)):
                Explanation.from_message(answer, picture(), "", EXPECTED)


def test_fields_are_documented() -> None:
    for kind in (Detection, Detections, Evaluation, Evaluations, HeatMap, SuppressedDetection, WhyNot):
        for name in kind.__dataclass_fields__:
            if name not in ("cells", "detections", "source"):
                assert re.search(rf"\b{name}\b", kind.__doc__ or ""), f"{kind.__name__}.{name}"
