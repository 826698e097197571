"""The arithmetic of detectron2's YAML files; none of this needs detectron2."""

from __future__ import annotations

import pytest

from whybox.detectors.detectron2_arithmetic import MAX_STEPS, compute


def test_expressions_are_pythons() -> None:
    for text in (
        "[[x, x * 2**(1.0/3), -x / 4 - 1] for x in [32, 64]]",
        "[[y + z for y in [1, 2]] for z in [3]]",
    ):
        assert compute(text) == eval(text)


@pytest.mark.parametrize("text", [3, None, ["1"], "1" * 1001, "1 +", "[1 for x in 3]", "x", "1 < 2", ""])
def test_what_is_no_arithmetic(text: object) -> None:
    with pytest.raises(ValueError, match=r"arithmetic|syntax|a list is made of|found"):
        compute(text)


def test_the_steps_of_an_expression_are_counted() -> None:
    """A list that is made of a list takes its source's steps, and its item's each time."""

    def counted(items: int) -> str:
        # 1 for the whole, 1 + 100 for each list, `items` times for the outer one.
        return f"[[1 for x in {[0] * 100}] for y in {[0] * items}]"

    each = 1 + (1 + 100) + 100
    items = (MAX_STEPS - 2) // (each + 1)
    assert len(compute(counted(items))) == items
    with pytest.raises(ValueError, match="more than 10000 steps"):
        compute(counted(items + 1))


def test_lists_within_lists_have_an_end() -> None:
    """Ten of ten of ten …: this would take years."""
    text = "1"
    for _ in range(20):
        text = f"[{text} for x in [1,1,1,1,1,1,1,1,1,1]]"
    with pytest.raises(ValueError, match="more than 10000 steps"):
        compute(text)
