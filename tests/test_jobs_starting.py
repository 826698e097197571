"""Pictures that jobs start from: what is kept has the pixels that a worker sees, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from picture_files import HEIGHT, NOISE, WIDTH, bad, chunk, exif_block, good, saved, turned
from whybox_proto import images
from whybox_proto.errors import ContractError
from whybox_proto.v1.types_pb2 import InputLimits, Layout, Model
from whybox_service.jobs.starting import bounded

GOOD, BAD = good(), bad()
LAYOUT = Layout(width=WIDTH, height=HEIGHT)


class Any:
    """No limits."""

    max_pixels = max_side = max_aspect = 1 << 30


@pytest.mark.parametrize("name", GOOD)
def test_the_pixels_are_the_same(name: str) -> None:
    pixels = images.decode(GOOD[name].data, Any())
    height, width = pixels.shape[:2]
    assert images.size_of(GOOD[name].data) == (width, height)
    kept = bounded(GOOD[name].data, Layout(width=width, height=height), Model())
    assert np.array_equal(images.decode(kept, Any()), pixels)
    assert len(kept) <= 3 * width * height + height + 1000


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused(name: str) -> None:
    with pytest.raises(ContractError) as raised:
        bounded(BAD[name].data, LAYOUT, Model())
    assert raised.value.field == "image"
    assert raised.value.row.http_status in (400, 413)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT + 1), (WIDTH - 1, HEIGHT), (HEIGHT, WIDTH)])
def test_one_of_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ContractError, match="not of the layout's size") as raised:
        bounded(saved(NOISE), Layout(width=size[0], height=size[1]), Model())
    assert raised.value.got == f"{WIDTH} x {HEIGHT} pixels"


def test_the_size_is_that_of_the_upright_picture() -> None:
    on_its_side = saved(NOISE, exif=exif_block(6))
    assert images.size_of(on_its_side) == (HEIGHT, WIDTH)
    kept = bounded(on_its_side, Layout(width=HEIGHT, height=WIDTH), Model())
    assert np.array_equal(images.decode(kept, Any()), turned(NOISE, 6))


def test_what_is_not_pixels_is_not_kept() -> None:
    plain = saved(NOISE)
    ballast = plain[:33] + chunk(b"tEXt", b"Comment\0" + bytes(500_000)) + plain[33:]
    assert bounded(ballast, LAYOUT, Model()) == bounded(plain, LAYOUT, Model())
    assert len(bounded(ballast, LAYOUT, Model())) < 4 * WIDTH * HEIGHT


def test_what_is_kept_is_no_longer_than_the_model_takes() -> None:
    """A file may be far smaller than its pixels."""
    small = saved(NOISE, "JPEG", quality=5)
    kept = len(bounded(small, LAYOUT, Model()))
    assert len(small) < kept
    assert len(bounded(small, LAYOUT, Model(input=InputLimits(max_bytes=kept)))) == kept
    with pytest.raises(ContractError, match="too large") as raised:
        bounded(small, LAYOUT, Model(input=InputLimits(max_bytes=kept - 1)))
    assert raised.value.field == "image"
