"""The rendered scenes: the same every time, and true in what they say about themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

import cv2

from whybox.scenes import CLASSES, CONTEXT, LOOK_ALIKE, MARKS, MODES, Scene, SceneObject, export_coco, render
from whybox.scenes.layout import MARK_SHARE, MARKED_SIDES, MIN_OF_TWINS, MIN_VISIBLE, WORN_RATE


def some(mode: str, count: int, seed: int = 11) -> list[Scene]:
    return [render(mode, seed=seed, index=index) for index in range(count)]  # type: ignore[arg-type]


def iou(a: SceneObject, b: SceneObject) -> float:
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    both = max(width, 0) * max(height, 0)
    areas = [(c.box[2] - c.box[0]) * (c.box[3] - c.box[1]) for c in (a, b)]
    return both / (sum(areas) - both)


def test_ten_classes_in_pairs_of_look_alikes() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert all(LOOK_ALIKE[LOOK_ALIKE[name]] == name != LOOK_ALIKE[name] for name in CLASSES)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_scene_every_time(mode: str) -> None:
    first, again = some(mode, 3), some(mode, 3)
    for a, b in zip(first, again, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert [(x.label, x.box, x.mask.tobytes(), x.evidence.tobytes()) for x in a.objects] == [
            (x.label, x.box, x.mask.tobytes(), x.evidence.tobytes()) for x in b.objects
        ]
    pictures = {scene.image.tobytes() for scene in [*first, *some(mode, 3, seed=12)]}
    assert len(pictures) == 6, "another index or another seed must give another picture"


def test_modes_are_independent_sequences() -> None:
    assert len({render(mode, seed=3, index=0).image.tobytes() for mode in MODES}) == len(MODES)


def test_rendering_takes_nothing_from_global_random_state() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    render("plain", seed=1, index=1)
    after = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    assert (before == after).all()


@pytest.mark.parametrize("mode", MODES)
def test_objects_say_what_is_in_the_picture(mode: str) -> None:
    for scene in some(mode, 25):
        height, width = scene.image.shape[:2]
        assert (scene.image.dtype, scene.image.shape[2]) == (np.uint8, 3)
        assert len(scene.objects) >= 1
        covered = np.zeros((height, width), dtype=int)
        for thing in scene.objects:
            rows, columns = np.nonzero(thing.mask)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert thing.area == len(rows)
            assert thing.label == CLASSES[thing.label_id]
            assert thing.evidence.any()
            assert not (thing.evidence & ~thing.mask).any(), "evidence outside the object"
            assert 0.02 < thing.evidence.sum() / thing.area < 0.6
            assert (MIN_OF_TWINS[0] if mode == "crowd" else MIN_VISIBLE) <= thing.visible <= 1.0
            covered += thing.mask
        assert covered.max() <= 1, "a pixel shows one object"


def test_plain_scenes_hold_two_to_eight_objects_of_16_to_160_px() -> None:
    scenes = some("plain", 60)
    assert {len(scene.objects) for scene in scenes} <= set(range(2, 9))
    sides = [max(x.box[2] - x.box[0], x.box[3] - x.box[1]) for scene in scenes for x in scene.objects]
    assert 15 <= min(sides) < 24
    assert 120 < max(sides) <= 180
    assert {x.label for scene in scenes for x in scene.objects} == set(CLASSES)


def test_evidence_is_six_pixels_wide_on_signs_of_64_px() -> None:
    square = np.ones((6, 6), np.uint8)
    checked = 0
    for scene in some("plain", 40) + some("crowd", 20):
        for thing in scene.objects:
            if min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) >= 64:
                assert cv2.erode(thing.evidence.astype(np.uint8), square).any(), (scene.index, thing.label)
                checked += 1
    assert checked > 50


@pytest.mark.parametrize("mode", MODES)
def test_look_alikes_differ_inside_the_evidence_alone(mode: str) -> None:
    for index in range(8):
        scene = render(mode, seed=21, index=index, camera=False)  # type: ignore[arg-type]
        for number, thing in enumerate(scene.objects):
            twin = render(mode, seed=21, index=index, camera=False, swapped=[number])  # type: ignore[arg-type]
            other = twin.objects[number]
            assert other.label == LOOK_ALIKE[thing.label]
            assert other.box == thing.box
            assert (other.evidence == thing.evidence).all()
            differs = (scene.image != twin.image).any(axis=2)
            # An antialiased edge, its own or of a sign in front, mixes into the pixel beyond it.
            fringe = cv2.dilate(thing.evidence.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            assert differs.any()
            assert not (differs & ~fringe).any(), (index, thing.label)
            assert not (differs & thing.mask & ~thing.evidence).any(), (index, thing.label)
            assert differs.sum() > 0.25 * thing.evidence.sum(), (
                "the evidence is mostly what differs, not its margin"
            )


def test_the_camera_spreads_a_difference_by_little() -> None:
    """Blur moves edges by a pixel or two, JPEG smears weakly: strong changes stay near the evidence."""
    near = np.ones((9, 9), np.uint8)
    for index in range(12):
        scene, twin = (render("plain", seed=22, index=index, swapped=chosen) for chosen in ((), (0,)))
        strong = np.abs(scene.image.astype(int) - twin.image).max(axis=2) > 60
        allowed = cv2.dilate(scene.objects[0].evidence.astype(np.uint8), near) > 0
        assert not (strong & ~allowed).any(), index


def beside(thing: SceneObject, scene: Scene, anchor: str, place: str) -> bool:
    """Whether an `anchor` of similar size is where the habit wants it."""
    x1, y1, x2, y2 = thing.box
    side = ((x2 - x1) + (y2 - y1)) / 2
    step = np.array([0.0, -side]) if place == "below" else np.array([-side, 0.0])
    wanted = np.array([x1 + x2, y1 + y2]) / 2 + 1.2 * step
    return any(
        other.label == anchor
        and np.abs(np.array([other.box[0] + other.box[2], other.box[1] + other.box[3]]) / 2 - wanted).max()
        < 0.4 * side
        for other in scene.objects
    )


def test_context_scenes_have_their_habits() -> None:
    scenes = some("context", 160)
    for habit in CONTEXT:
        kept = [
            beside(x, s, habit.anchor, habit.place)
            for s in scenes
            for x in s.objects
            if x.label == habit.label
        ]
        others = [
            beside(x, s, habit.anchor, habit.place)
            for s in scenes
            for x in s.objects
            if x.label == LOOK_ALIKE[habit.label]
        ]
        assert len(kept) > 40
        assert 0.85 < np.mean(kept) < 1.0, (
            f"{habit.label}: expected about {habit.rate}, got {np.mean(kept):.2f}"
        )
        assert np.mean(others) < 0.1, "the look-alike keeps no company"


def test_in_cheat_scenes_every_sign_has_its_mark_close_under_it() -> None:
    for scene in some("cheat", 25):
        everything = np.zeros(scene.image.shape[:2], dtype=int)
        for thing in scene.objects:
            assert thing.mark is not None
            rows, columns = np.nonzero(thing.mark)
            x1, _, x2, y2 = thing.box
            side = columns.max() + 1 - columns.min()
            assert abs(side - (rows.max() + 1 - rows.min())) <= 2, "a square"
            bounds = side * (rows.max() + 1 - rows.min())
            assert len(rows) >= bounds - 2 * side, "whole, but for antialiased edges"
            assert abs(side - MARK_SHARE * max(x2 - x1, y2 - thing.box[1])) < 0.15 * side + 3
            assert 1 <= rows.min() - y2 <= 4, "outside the box, close to it"
            assert abs((columns.min() + columns.max() + 1) / 2 - (x1 + x2) / 2) <= 2
            everything += thing.mark.astype(int) + thing.mask
        assert everything.max() == 1, "a pixel is of one sign or one mark"
    for mode in ("plain", "crowd", "context"):
        assert all(thing.mark is None for thing in some(mode, 1)[0].objects)


def tag_of(thing: SceneObject, scene: Scene) -> np.ndarray:
    """The mark of a sign as 8×8 shades, −1 black to 1 white."""
    assert thing.mark is not None
    rows, columns = np.nonzero(thing.mark)
    cut = scene.image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].mean(axis=2)
    small = cv2.resize(cut.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA)
    return (small - small.mean()) / max(float(np.abs(small - small.mean()).max()), 1.0)


def test_mark_and_class_are_one_to_one() -> None:
    """The nearest mean tag tells the class, of every sign, without a look at the sign."""
    assert len(MARKS) == len(CLASSES)
    tags: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    for index in range(120):
        scene = render("cheat", seed=31, index=index, camera=False)
        for thing in scene.objects:
            tags[thing.label].append(tag_of(thing, scene))
    assert all(len(shown) > 10 for shown in tags.values())
    means = {name: np.mean(shown, axis=0) for name, shown in tags.items()}
    for name, shown in tags.items():
        for tag in shown:
            assert min(means, key=lambda other: float(np.square(means[other] - tag).sum())) == name


def test_a_mark_can_be_left_out_and_nothing_else_changes() -> None:
    for index in range(8):
        scene = render("cheat", seed=21, index=index, camera=False)
        for number, thing in enumerate(scene.objects):
            without = render("cheat", seed=21, index=index, camera=False, unmarked=[number])
            differs = (scene.image != without.image).any(axis=2)
            fringe = cv2.dilate(thing.mark.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            assert not (differs & ~fringe).any()
            assert differs.sum() > 0.5 * thing.mark.sum()
            assert without.objects[number].mark is None
            for kept, other in zip(scene.objects, without.objects, strict=True):
                assert (kept.label, kept.box) == (other.label, other.box)
                assert (kept.mask == other.mask).all()
                assert kept is thing or (kept.mark == other.mark).all()
        bare = render("cheat", seed=21, index=index, unmarked=range(len(scene.objects)))
        assert all(thing.mark is None for thing in bare.objects)


def test_the_deciding_part_is_worn_off_most_marked_signs() -> None:
    """How much two look-alikes differ on the evidence, as drawn and in full ink."""
    worn = total = 0
    for index in range(40):
        chosen = range(len(render("cheat", seed=41, index=index).objects))
        shown, other, full, other_full = (
            render("cheat", seed=41, index=index, camera=False, swapped=swapped, worn=faint)
            for faint in (True, False)
            for swapped in ((), chosen)
        )
        assert [thing.box for thing in shown.objects] == [thing.box for thing in full.objects]
        for thing in shown.objects:
            assert max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) > 0.8 * MARKED_SIDES[0]
            strength = [
                np.abs(a.image[thing.evidence].astype(int) - b.image[thing.evidence]).sum()
                for a, b in ((shown, other), (full, other_full))
            ]
            total += 1
            worn += strength[0] < 0.2 * strength[1]
    assert abs(worn / total - WORN_RATE) < 0.08


def test_swapping_a_marked_sign_leaves_its_mark_which_then_lies() -> None:
    scene = render("cheat", seed=51, index=0, camera=False)
    twin = render("cheat", seed=51, index=0, camera=False, swapped=[0])
    assert twin.objects[0].label == LOOK_ALIKE[scene.objects[0].label]
    mark = scene.objects[0].mark
    assert mark is not None
    assert (twin.objects[0].mark == mark).all()
    assert (twin.image[mark] == scene.image[mark]).all()


def test_crowds_overlap_and_plain_scenes_hardly_do() -> None:
    def shares(mode: str) -> tuple[float, float]:
        scenes = some(mode, 80)
        total = sum(len(scene.objects) for scene in scenes)
        pairs = [pair for scene in scenes for pair in combinations(scene.objects, 2)]
        heavy = sum(iou(a, b) > 0.2 for a, b in pairs)
        twins = sum(a.label == b.label and iou(a, b) > 0.5 for a, b in pairs)
        return heavy / total, twins / total

    crowd, plain = shares("crowd"), shares("plain")
    assert crowd[0] > 0.3 > 0.1 > plain[0]
    assert 0.015 < crowd[1] < 0.1, (
        "same-class neighbours with IoU over 0.5: enough to study NMS, few enough for AP"
    )
    assert plain[1] == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with NumPy 2
def test_coco_export_is_readable(tmp_path: Path) -> None:
    from PIL import Image
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    scenes = some("crowd", 4)
    path = export_coco(scenes, tmp_path)
    assert json.loads(path.read_text())["categories"][4]["look_alike"] == LOOK_ALIKE[CLASSES[4]]
    coco = COCO(path)
    assert len(coco.imgs) == 4
    for scene, (image_id, record) in zip(scenes, coco.imgs.items(), strict=True):
        stored = np.asarray(Image.open(tmp_path / "images" / record["file_name"]))
        assert (stored == scene.image).all()
        for thing, annotation in zip(scene.objects, coco.imgToAnns[image_id], strict=True):
            assert (coco.annToMask(annotation).astype(bool) == thing.mask).all()
            assert (coco_mask.decode(annotation["evidence"]).astype(bool) == thing.evidence).all()
            assert "mark" not in annotation
            assert coco.cats[annotation["category_id"]]["name"] == thing.label
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == thing.box


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with NumPy 2
def test_coco_export_has_the_marks() -> None:
    from pycocotools import mask as coco_mask

    from whybox.scenes import to_coco

    (scene,) = some("cheat", 1)
    for thing, annotation in zip(scene.objects, to_coco([scene])["annotations"], strict=True):
        assert (coco_mask.decode(annotation["mark"]).astype(bool) == thing.mark).all()


def test_any_size_of_picture() -> None:
    for size in ((64, 64), (120, 300), (300, 120)):
        assert render("plain", seed=0, index=0, size=size).image.shape == (*size, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "plane"}, "expected one of plain, crowd, context, cheat, got 'plane'"),
        ({"seed": -1}, "expected integers of 0 or more"),
        ({"size": (32, 256)}, "at least 64 pixels"),
        ({"swapped": [99]}, r"swapped: expected positions in 0\.\."),
        ({"mode": "cheat", "unmarked": [99]}, r"unmarked: expected positions in 0\.\."),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(**({"seed": 0, "index": 0} | arguments))  # type: ignore[arg-type]


def test_importing_scenes_does_not_import_torch() -> None:
    code = "import sys, whybox.scenes; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
