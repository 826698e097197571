"""Rendered scenes of street signs in which the pixels that decide each sign's class are known.

    >>> scene = render("plain", seed=0, index=7)
    >>> scene.image.shape, scene.objects[0].label  # doctest: +SKIP

Needs NumPy and OpenCV (the extra `train`); never imports torch.
"""

from whybox.scenes.catalogue import CLASSES, CONTEXT, LOOK_ALIKE, MARKS, Habit
from whybox.scenes.coco import export_coco, to_coco
from whybox.scenes.layout import MODES, Mode
from whybox.scenes.render import Scene, SceneObject, render

__all__ = [
    "CLASSES",
    "CONTEXT",
    "LOOK_ALIKE",
    "MARKS",
    "MODES",
    "Habit",
    "Mode",
    "Scene",
    "SceneObject",
    "export_coco",
    "render",
    "to_coco",
]
