"""What to train and how: one frozen value per model, and the demo models' recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from whybox.scenes import MODES, Mode

HELD_OUT_SEED: Final = 1_000_003
"""The seed of the scenes that models are judged on; training refuses it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training's result.

    `modes` pairs each mode of scenes with its share (the shares sum to 1). `images` counts rendered scenes,
    each used
    once. `learning_rate` is the peak, reached after `warm_up` steps; then it falls to zero along a cosine.
    `clip` bounds the norm of the gradient. `size` is (height, width) in pixels.
    """

    name: str
    architecture: str
    modes: tuple[tuple[Mode, float], ...]
    images: int
    seed: int = 1
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: int = 150
    clip: float = 5.0
    size: tuple[int, int] = (256, 256)

    def __post_init__(self) -> None:
        if self.seed == HELD_OUT_SEED:
            raise ValueError(
                f"seed: {HELD_OUT_SEED} is kept for evaluation; expected any other, got {self.seed}"
            )
        if self.images < self.batch:
            raise ValueError(f"images: expected at least one batch ({self.batch}), got {self.images}")
        if unknown := [mode for mode, _ in self.modes if mode not in MODES]:
            raise ValueError(f"modes: expected some of {', '.join(MODES)}, got {', '.join(unknown)}")
        if abs(sum(share for _, share in self.modes) - 1.0) > 1e-6:
            raise ValueError(f"modes: expected shares that sum to 1, got {dict(self.modes)}")

    @property
    def steps(self) -> int:
        """Optimiser steps; images that do not fill a batch are left out."""
        return self.images // self.batch

    @property
    def held_out_modes(self) -> tuple[Mode, ...]:
        """The modes to judge the model on: those it is trained on, in equal parts."""
        return tuple(mode for mode, _ in self.modes)


_STREET: Final[tuple[tuple[Mode, float], ...]] = (("plain", 0.65), ("crowd", 0.35))

DEMO: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe("retinanet-signs", "retinanet", _STREET, images=28_000, seed=1),
        Recipe("faster-rcnn-signs", "faster-rcnn", _STREET, images=19_200, seed=2),
        Recipe("fcos-signs", "fcos", _STREET, images=20_800, seed=3),
        Recipe("mask-rcnn-signs", "mask-rcnn", _STREET, images=16_000, seed=4),
        Recipe("retinanet-signs-context", "retinanet", (("context", 1.0),), images=14_400, seed=5),
        Recipe("retinanet-signs-cheat", "retinanet", (("cheat", 1.0),), images=12_800, seed=6),
        Recipe("ssd-signs", "ssd", _STREET, images=19_200, seed=7),
    )
}
"""The demo models, in the order in which `--all` trains them."""
