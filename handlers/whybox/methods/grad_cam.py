"""Grad-CAM and Grad-CAM++: the maps of one layer, each with a single weight for all its cells."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from whybox.detectors.base import Detector, WhiteBoxDetector
from whybox.methods.base import SIDES, Map, Method, Param, Question, scalar
from whybox.methods.layer_maps import cut_to_box, place_whole
from whybox.methods.odam import Odam
from whybox.methods.placing import Room

_LIKE_ODAM = tuple(param for param in Odam.params if param.name in ("score", "exact"))


class _ChannelWeighted(Method):
    """H = ReLU(Σ_k w_k A_k) with one weight w_k for the whole map A_k.

    The weight forgets where the gradient was, so the map shows every place of the layer that has the same
    features: all objects of a class, not the one that was asked about.
    """

    params = (
        *_LIKE_ODAM,
        Param(
            "truncate",
            False,
            "cut the map to the detection's box; false shows the whole layer",
        ),
    )
    targets = ("class", *SIDES)

    def layers(self, detector: Detector) -> list[str] | None:
        """Name every layer that can be tapped, local ones first; a black box cannot be explained."""
        return list(detector.layers) if isinstance(detector, WhiteBoxDetector) else None

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        found, params = question.detections, question.params
        tap = detector.tap(
            question.forward,
            question.image,
            question.layer,
            found.candidates,
            found.labels,
            exact=bool(params["exact"]),
        )
        targets = [scalar(target, detector.labels, score=str(params["score"])) for target in question.targets]
        frame = question.forward.batch.frames[question.image]
        rows: list[list[Map]] = [[] for _ in range(len(found))]
        room = Room(question.memory)
        for window in tap.windows(targets):
            question.patience.check()
            for pick, gradients in zip(window.picks.tolist(), window.gradients, strict=True):
                whole = tap.whole(pick)
                room.take(len(targets) * whole[0].numel())
                heat = torch.einsum("tc,chw->thw", self.weights(gradients, whole), whole).relu()
                rows[pick] = place_whole(heat, pick, tap, frame)
                if params["truncate"]:
                    rows[pick] = [cut_to_box(made, found.boxes[pick]) for made in rows[pick]]
        return rows

    @staticmethod
    @abstractmethod
    def weights(gradients: Tensor, whole: Tensor) -> Tensor:
        """Weigh the channels.

        Args:
            gradients: float (T, C, h, w), of each target by the activations of a window outside of which they
                are zero.
            whole: float (C, H, W), the layer's maps.

        Returns:
            float (T, C).
        """


class GradCam(_ChannelWeighted):
    """H = ReLU(Σ_k w_k A_k), w_k = 1/Z Σ_ij ∂Y/∂A_k(i, j) with Z the cells of the layer.

    As published, Y is the class's score before the softmax (``score=logit``); the default here is the final
    score, like ODAM's, so that both explain the same number.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, equations 1 and 2.
    """

    name = "grad_cam"
    description = (
        "Grad-CAM (Selvaraju et al., 2017): the maps of a layer, each weighted by its mean gradient; "
        "shows a class rather than one object"
    )

    @staticmethod
    def weights(gradients: Tensor, whole: Tensor) -> Tensor:
        """Take the mean of the gradient over the whole layer."""
        return gradients.sum((2, 3)) / (whole.shape[1] * whole.shape[2])


class GradCamPlusPlus(_ChannelWeighted):
    """H = ReLU(Σ_k w_k A_k), w_k = Σ_ij α_k(i, j) ReLU(∂Y/∂A_k(i, j)).

    With g = ∂Y/∂A_k and S_k = Σ_ab A_k(a, b), α = g² / (2g² + S_k g³), which is 1 / (2 + S_k g) where g is
    not zero. That is the closed form of the paper for a score exp(Y); the factor exp(Y), one for the whole
    map, is left out. The paper's maps come after a ReLU. Where a layer also has negative activations S_k may
    be negative, and α as well; cells whose denominator is zero count nothing.

    Source: Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
    WACV 2018, equations 5, 10 and 19.
    """

    name = "grad_cam_pp"
    description = (
        "Grad-CAM++ (Chattopadhay et al., 2018): Grad-CAM whose mean weighs the places with a positive "
        "gradient by its higher powers"
    )

    @staticmethod
    def weights(gradients: Tensor, whole: Tensor) -> Tensor:
        """Weigh the positive gradients by α and add them up."""
        positive = gradients.relu()
        denominator = 2 + whole.sum((1, 2))[:, None, None] * positive  # where g is not positive α is not used
        shares = torch.where(denominator != 0, positive / denominator, 0)
        return shares.sum((2, 3))
