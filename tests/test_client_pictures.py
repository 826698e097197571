"""Overlays, boxes and contact sheets: colour is where it should be, sizes are what they should be."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from whybox_client import colors, pictures
from whybox_client.pictures import Labelled, Tile

H, W = 60, 80
GREY = Image.new("RGB", (W, H), (128, 128, 128))


def spot(value: float = 1.0) -> np.ndarray:
    values = np.zeros((H, W), np.float32)
    values[20:30, 40:60] = value
    return values


def test_overlay_colours_the_hot_pixels_and_leaves_the_others() -> None:
    drawn = np.asarray(pictures.overlay(GREY, spot())).astype(int)
    hot = spot() > 0
    assert (drawn[~hot] == 128).all()
    red, green, blue = drawn[hot].T
    assert (red > 180).all()
    assert (green < 110).all()
    assert (blue < 110).all()


def test_more_heat_is_nearer_to_red_and_covers_more() -> None:
    ramp = np.tile(np.linspace(0, 1, W, dtype=np.float32), (H, 1))
    drawn = np.asarray(pictures.overlay(GREY, ramp)).astype(int)
    changed = np.abs(drawn - 128).sum(-1)[0]
    assert changed[0] == 0
    assert changed[W // 8] > 0
    assert drawn[0, W // 4].argmax() in (1, 2)
    assert drawn[0, -1].argmax() == 0


def test_the_scale_of_a_map_does_not_matter_for_display() -> None:
    assert pictures.overlay(GREY, spot(1e-6)).tobytes() == pictures.overlay(GREY, spot(1e6)).tobytes()


@pytest.mark.parametrize("signed", [False, True])
def test_a_zero_map_gives_no_colour(signed: bool) -> None:
    assert pictures.overlay(GREY, np.zeros((H, W), np.float32), signed=signed).tobytes() == GREY.tobytes()


def test_a_constant_map_gives_no_colour() -> None:
    assert pictures.overlay(GREY, np.full((H, W), 7, np.float32)).tobytes() == GREY.tobytes()


def test_opacity_goes_from_nothing_to_everything() -> None:
    assert pictures.overlay(GREY, spot(), opacity=0).tobytes() == GREY.tobytes()
    full = np.asarray(pictures.overlay(GREY, spot(), opacity=1))
    assert np.array_equal(full[25, 50], np.rint(colors.heat(np.ones(1, np.float32))[0]).astype(np.uint8))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="opacity"):
            pictures.overlay(GREY, spot(), opacity=wrong)


def test_a_signed_map_is_blue_against_red_and_zero_stays_zero() -> None:
    values = spot(0.5)
    values[40:50, 10:20] = -1
    drawn = np.asarray(pictures.overlay(GREY, values, signed=True)).astype(int)
    red, _, blue = drawn[25, 50]
    assert red > blue
    red, _, blue = drawn[45, 15]
    assert blue > red
    assert (drawn[values == 0] == 128).all()


def test_overlay_takes_maps_in_the_image_frame_only() -> None:
    with pytest.raises(ValueError, match=r"\(60, 80\)"):
        pictures.overlay(GREY, np.zeros((W, H), np.float32))


def test_overlay_draws_the_box_white_within_black() -> None:
    drawn = np.asarray(pictures.overlay(GREY, np.zeros((H, W), np.float32), box=(10, 20, 50, 40)))
    assert (drawn[20:40, 10] == 255).all()
    assert (drawn[20:40, 49] == 255).all()
    assert (drawn[20, 10:50] == 255).all()
    assert (drawn[39, 10:50] == 255).all()
    assert (drawn[20:40, 9] == 0).all()
    assert (drawn[40, 10:50] == 0).all()
    assert (drawn[30, 20:40] == 128).all()
    assert (drawn[:18] == 128).all()


@pytest.mark.parametrize(
    "box", [(-50, -50, 500, 500), (79.6, 59.6, 79.9, 59.9), (200, 200, 300, 300), (5, 5, 5, 5)]
)
def test_boxes_beyond_the_border_are_clipped(box: tuple[float, float, float, float]) -> None:
    assert pictures.overlay(GREY, spot(), box=box).size == (W, H)
    assert pictures.draw_boxes(GREY, [Labelled(box, "far away", (200, 0, 0))]).size == (W, H)


def test_boxes_have_their_colour_and_text_and_leave_the_image_alone() -> None:
    before = GREY.tobytes()
    box = Labelled((30, 30, 60, 50), "stop 0.9", (10, 200, 30))
    drawn = np.asarray(pictures.draw_boxes(GREY, [box]))
    assert GREY.tobytes() == before
    assert tuple(drawn[40, 30]) == (10, 200, 30)
    plate = drawn[10:29, 30:60].reshape(-1, 3)
    assert (plate == (10, 200, 30)).all(-1).any()
    assert (plate > 200).all(-1).any()  # white ink on dark green


def test_every_mode_can_be_drawn_on() -> None:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        image = GREY.convert(mode)
        for drawn in (pictures.overlay(image, spot()), pictures.draw_boxes(image, []), pictures.fit(image)):
            assert drawn.mode == "RGB"


def test_fit_scales_the_longer_side() -> None:
    assert pictures.fit(GREY, 320).size == (320, 240)
    assert pictures.fit(GREY, 40).size == (40, 30)
    assert pictures.fit(Image.new("RGB", (1, 900)), 300).size == (1, 300)


def test_a_contact_sheet_is_as_large_as_its_tiles_titles_and_gaps() -> None:
    tile, tall = Tile(GREY, "class"), Tile(Image.new("RGB", (50, 100)), "x1")
    gap, title = 8, 22
    sheet = pictures.contact_sheet([[tile, tall], [tile]])
    assert sheet.size == (3 * gap + 80 + 50, 3 * gap + 2 * title + 100 + 60)
    with_footer = pictures.contact_sheet([[tile]], footer="and 2 more")
    assert with_footer.size == (2 * gap + 80, 2 * gap + 2 * title + 60)
    assert np.array_equal(np.asarray(sheet)[gap + title : gap + title + H, gap : gap + W], np.asarray(GREY))
    assert (np.asarray(sheet)[gap : gap + title, gap : gap + W] < 128).any()
    with pytest.raises(ValueError, match="at least one tile"):
        pictures.contact_sheet([])


def test_a_title_does_not_run_into_its_neighbour() -> None:
    wide = pictures.contact_sheet([[Tile(GREY, "a title much longer than its tile " * 3), Tile(GREY, "")]])
    assert (np.asarray(wide)[:30, 8 + W :] == 255).all()


def test_labels_have_colours_for_ever() -> None:
    assert pictures.label_color(0) != pictures.label_color(1)
    assert pictures.label_color(0) == pictures.label_color(len(colors.LABEL_COLORS))
