"""The figures of crowds, by arithmetic and against pycocotools; and the table of Odam-NMS."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from builders import LABELS, write_recipe
from whybox.detectors.base import Detections
from whybox.engine import Engine
from whybox.evaluation.crowds import FIGURES, Truths, figures, match
from whybox.evaluation.nms import NAMES, compare, crowds, evaluate_nms, settings_by_kind, table
from whybox.evaluation.nms_tuning import CORR_HIGH, CORR_LOW, goodness, tune
from whybox.finding import find
from whybox.recipe import read_recipe
from whybox.scenes import render

A, A_TWIN, B = [0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0], [40.0, 40.0, 60.0, 60.0]


def detections(rows: list[tuple[list[float], int, float]]) -> Detections:
    """(box, label, score), best first."""
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    scores = torch.tensor([row[2] for row in rows])
    return Detections(boxes, labels, scores, torch.zeros(len(rows), 3), torch.arange(len(rows)))


def truths(*rows: tuple[list[float], int]) -> Truths:
    return Truths(torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))


def values(found: list[Detections], real: list[Truths]) -> dict[str, float]:
    taken = figures(found, real, resamples=0).values
    return {name: value for name, (value, _) in taken.items()}


def test_crowded_are_those_that_overlap_their_own_class() -> None:
    assert truths((A, 0), (A_TWIN, 0), (B, 0)).crowded.tolist() == [True, True, False]  # IoU 7 / 13
    assert truths((A, 0), (A_TWIN, 1), (B, 0)).crowded.tolist() == [False, False, False]


def test_all_found_and_nothing_else() -> None:
    real = [truths((A, 0), (A_TWIN, 0), (B, 1))]
    found = [detections([(A, 0, 0.9), (A_TWIN, 0, 0.8), (B, 1, 0.7)])]
    assert values(found, real) == pytest.approx(
        {"ap50": 1, "mr": 0, "ji": 1, "crowded": 1, "sparse": 1}, abs=1e-9
    )


def test_figures_in_numbers() -> None:
    """Two scenes: the twin is missed in one, a false alarm stands in the other."""
    real = [truths((A, 0), (A_TWIN, 0)), truths((B, 0))]
    found = [detections([(A, 0, 0.92)]), detections([(B, 0, 0.82), (A, 0, 0.72)])]
    taken = values(found, real)
    # Precision 1 up to a recall of 2/3, then nothing: 67 of 101 levels.
    assert taken["ap50"] == pytest.approx(67 / 101)
    # Best first: two hits, then one false positive, which makes 0.5 a picture. At every rate 1/3 is missed.
    assert taken["mr"] == pytest.approx(1 / 3)
    # Above 0.72 the pictures have 1 of 2 and 1 of 1.
    assert taken["ji"] == pytest.approx((1 / 2 + 1) / 2)
    assert (taken["crowded"], taken["sparse"]) == pytest.approx((1 / 2, 1))


def test_nothing_found() -> None:
    taken = values([detections([])], [truths((A, 0))])
    assert (taken["ap50"], taken["mr"], taken["ji"]) == (0, 1, 0)
    assert math.isnan(taken["crowded"])
    assert taken["sparse"] == 0


def test_matching_is_greedy_but_the_jaccard_index_makes_as_many_matches_as_can_be() -> None:
    """The first detection fits both twins and takes the one that the second needs."""
    middle, left = [1.4, 0.0, 11.4, 10.0], [0.0, 0.0, 9.0, 10.0]
    real = truths((A, 0), (A_TWIN, 0))
    found = detections([(middle, 0, 0.9), (left, 0, 0.8)])
    assert match(found, real).tolist() == [0, -1]
    assert values([found], [real])["ji"] == 1


def test_average_precision_is_that_of_pycocotools() -> None:
    random = np.random.default_rng(4)
    found, real, annotations, results = [], [], [], []
    for picture in range(12):
        corners = random.uniform(0, 60, (5, 2))
        boxes = np.concatenate([corners, corners + random.uniform(16, 30, (5, 2))], 1)
        labels = random.integers(0, 3, 5)
        real.append(Truths(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)))
        guess = np.repeat(boxes, 3, 0) + random.normal(0, 3, (15, 4))
        scores = np.sort(random.uniform(0.05, 1, 15))[::-1].copy()
        order = random.permutation(15)
        guess, guessed = guess[order], np.repeat(labels, 3)[order]
        rows = zip(guess.tolist(), guessed.tolist(), scores.tolist(), strict=True)
        found.append(detections(list(rows)))
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture,
                    "category_id": label,
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        for box, label, score in zip(
            found[-1].boxes.tolist(), found[-1].labels.tolist(), found[-1].scores.tolist(), strict=True
        ):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": picture, "category_id": label, "bbox": sides, "score": score})
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(12)],
        "annotations": annotations,
        "categories": [{"id": i} for i in range(3)],
    }
    truth.createIndex()
    peer = COCOeval(truth, truth.loadRes(results), "bbox")
    peer.params.iouThrs = np.array([0.5])
    peer.evaluate()
    peer.accumulate()
    precision = peer.eval["precision"][0, :, :, 0, -1]
    ours = figures(found, real, resamples=0).values["ap50"][0]
    assert 0.2 < ours < 0.95
    assert ours == pytest.approx(float(precision.mean()), abs=1e-6)


def test_intervals_hold_the_value_and_equal_answers_gain_nothing() -> None:
    real = [truths((A, 0), (A_TWIN, 0)), truths((B, 0)), truths((A, 1)), truths((B, 1), (A, 0))] * 3
    found = [detections([(A, 0, 0.9), (B, 0, 0.8)])] * len(real)
    taken = figures(found, real, resamples=50)
    for name in FIGURES:
        estimate = taken.estimate(name)
        assert estimate.low <= estimate.mean <= estimate.high
        gain = taken.gain(name, figures(found, real, resamples=50))
        assert (gain.mean, gain.low, gain.high) == (0, 0, 0)
    assert taken.estimate("ap50").low < taken.estimate("ap50").high


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("recipe")
    # Few labels, so that a random detector meets some of the scenes' objects.
    recipe = read_recipe(write_recipe(folder, "faster-rcnn", nms={"odam": {"corr_high": 0.9}}))
    return Engine.load(recipe, folder / str(recipe.weights))


def test_the_table_has_every_kind_and_its_gain(engine: Engine) -> None:
    told: list[None] = []
    rows = evaluate_nms(engine, 3, seed=5, resamples=20, tell=lambda: told.append(None))
    assert len(told) == 3
    assert [row.kind for row in rows] == list(NAMES)
    assert rows[2].settings.corr_high == pytest.approx(0.9)
    lines = table(rows).splitlines()
    assert lines[0].count("|") == lines[2].count("|") == lines[-1].count("|")
    assert lines[4].startswith("| Odam-NMS (T 0.5, T_h 0.9, T_l 0.05) |")
    assert lines[-1].startswith("| Odam-NMS − greedy |")
    again = evaluate_nms(engine, 3, seed=5, resamples=20)
    assert table(again) == table(rows)


def test_figures_of_a_crowd_are_those_of_the_engines_answers(engine: Engine) -> None:
    (crowd,) = crowds(engine.detector, 1, seed=5)
    for kind, settings in settings_by_kind(engine.model).items():
        picture = torch.from_numpy(render("crowd", seed=5, index=0).image)
        ((_, batch),) = engine.detector.prepare([picture])
        found = find(engine.detector, engine.detector.forward(batch, keep=True), 0, settings)
        mine = crowd.detections(settings)
        assert mine.candidates.tolist() == found.detections.candidates.tolist(), kind


def test_tuning_tries_all_and_puts_the_best_first(engine: Engine) -> None:
    seen = list(crowds(engine.detector, 2, seed=5))
    rows = tune(engine, seen, progress=False)
    assert len(rows) == len(CORR_HIGH) * len(CORR_LOW)
    scores = [goodness(row) for row in rows]
    assert scores == sorted(scores, reverse=True)
    greedy = next(r for r in rows if (r.settings.corr_high, r.settings.corr_low) == (1.0, -1.0))
    (same,) = compare(seen, {"iou": settings_by_kind(engine.model)["iou"]}, resamples=0)
    assert goodness(greedy) == goodness(same)
    assert set(LABELS) == set(engine.model.labels)


def test_the_command_writes_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whybox.evaluation import nms_tuning

    path = write_recipe(tmp_path, "faster-rcnn")
    monkeypatch.setattr("sys.argv", ["tune", str(path), "--scenes", "1", "--write"])
    monkeypatch.setattr(nms_tuning, "CORR_HIGH", (0.75,))
    monkeypatch.setattr(nms_tuning, "CORR_LOW", (0.25,))
    nms_tuning.main()
    assert "| greedy (T 0.5) |" in capsys.readouterr().out
    assert read_recipe(path).nms == {"odam": {"corr_high": 0.75, "corr_low": 0.25}}
