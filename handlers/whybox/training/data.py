"""Scenes as training data: rendered in worker processes, one scene per position, no order to remember.

Position i of a data set always holds the same scene with the same augmentation, so that an interrupted
training continues with exactly what it would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from whybox.scenes import Scene, render
from whybox.training.recipe import Recipe

_RENDER_TIMEOUT = 120.0  # seconds without a batch after which the renderer counts as dead


class Target(TypedDict, total=False):
    """torchvision's target: `boxes` float32 [G, 4], `labels` int64 [G] in 1..K, `masks` uint8 [G, H, W]."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor


Sample = tuple[Tensor, Target]
"""An image (uint8 [3, H, W]) and its target."""


class SceneData(Dataset[Sample]):
    """The recipe's scenes. `masks` adds each object's mask to its target."""

    def __init__(self, recipe: Recipe, *, masks: bool) -> None:
        self.recipe = recipe
        self.masks = masks

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch

    def __getitem__(self, index: int) -> Sample:
        recipe = self.recipe
        rng = np.random.default_rng(np.random.SeedSequence([recipe.seed, index]))
        names, shares = zip(*recipe.modes, strict=True)
        mode = names[int(rng.choice(len(names), p=shares))]
        scene = render(mode, seed=recipe.seed, index=index, size=recipe.size)
        return as_tensor(augment(rng, scene.image)), target_of(scene, masks=self.masks)


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] → uint8 [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def augment(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Permute the channels and change contrast and brightness; never flips, which would change classes."""
    contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(-30.0, 30.0)
    levels = (np.arange(256) - 127.5) * contrast + 127.5 + brightness
    table = levels.clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table), dtype=np.uint8)[:, :, rng.permutation(3)]


def target_of(scene: Scene, *, masks: bool) -> Target:
    """The scene's objects as torchvision expects them; the label is `label_id + 1`."""
    target = Target(
        boxes=torch.tensor([thing.box for thing in scene.objects], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([thing.label_id + 1 for thing in scene.objects], dtype=torch.int64),
    )
    if masks:
        height, width = scene.image.shape[:2]
        stacked = np.array([thing.mask for thing in scene.objects], dtype=np.uint8).reshape(-1, height, width)
        target["masks"] = torch.from_numpy(stacked)
    return target


class _Onwards(Sampler[int]):
    """Positions from `first` to the end, in order: every scene is new, so there is nothing to shuffle."""

    def __init__(self, first: int, last: int) -> None:
        self._positions = range(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def batches(recipe: Recipe, *, masks: bool, first_step: int, workers: int) -> DataLoader[Any]:
    """Batches `(images uint8 [B, 3, H, W], list of B targets)` from step `first_step` on.

    With `workers` > 0 scenes are rendered in that many spawned processes. A renderer that dies or stops
    answering raises RuntimeError in the trainer, which then does not wait for ever.
    """
    data = SceneData(recipe, masks=masks)
    spawned: dict[str, Any] = {}
    if workers:
        spawned = {
            "multiprocessing_context": "spawn",
            "prefetch_factor": 6,
            "timeout": _RENDER_TIMEOUT,
            "worker_init_fn": _stand_back,
        }
    return DataLoader(
        data,
        batch_size=recipe.batch,
        sampler=_Onwards(first_step * recipe.batch, len(data)),
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # not the global one: it would draw from it at each resumption
        **spawned,
    )


def _collate(samples: list[Sample]) -> tuple[Tensor, list[Target]]:
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def _stand_back(_: int) -> None:
    """One thread at low priority, so that the trainer's threads are not held up by rendering."""
    os.nice(10)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
