"""whybox beside captum, pytorch-grad-cam and xaitk-saliency: same model, same input, same numbers.

ODSmoothGrad's agreement with captum is in test_odsmoothgrad.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from torch import Tensor, nn

from builders import LABELS, random_image, random_model
from peer_libraries import xaitk
from reference_parts import double_precision
from whybox.detectors.base import Detections, Forward, PostProcessing
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods import METHODS
from whybox.methods.base import Map, ParamValue, Question, normalise
from whybox.methods.drise import RandomMasks
from whybox.methods.grad_cam import GradCamPlusPlus
from whybox.methods.perturbing import Perturbed

LAYER = "layer3"
HEIGHT, WIDTH = 96, 128  # multiples of 32: no padding to tell apart


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with double_precision():
        yield


class Case:
    """A detector and the best three objects of one picture."""

    def __init__(self, architecture: str) -> None:
        self.model: Any = random_model(architecture)
        self.detector: TorchvisionDetector = wrap(self.model, LABELS, background=True)
        self.image = random_image(HEIGHT, WIDTH)
        ((_, batch),) = self.detector.prepare([self.image])
        self.forward: Forward = self.detector.forward(batch, keep=True)
        self.settings = PostProcessing(0.05, 3)
        self.found: Detections = self.detector.postprocess(
            self.detector.candidates(self.forward, 0), batch.frames[0], self.settings
        )
        assert len(self.found) == 3

    def ask(self, method: str, layer: str, **params: ParamValue) -> list[Map]:
        """The class maps of the three."""
        defaults = {param.name: param.default for param in METHODS[method].params}
        question = Question(
            self.forward,
            0,
            self.found,
            ("class",),
            layer,
            {**defaults, **params},
            picture=self.image,
            settings=self.settings,
        )
        return [row[0] for row in METHODS[method].explain(self.detector, question)]


class RetinaNetScore(nn.Module):
    """A RetinaNet as a classifier of one of its anchors: (1, K + 1) scores, or logits, from pixels."""

    def __init__(self, model: Any, candidate: int, *, logit: bool) -> None:
        super().__init__()
        self.model, self.candidate, self.logit = model, candidate, logit

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the network as torchvision wrote it, on normalised pixels (1, 3, H, W)."""
        levels = list(self.model.backbone(pixels).values())
        logits = self.model.head(levels)["cls_logits"][:, self.candidate]
        return logits if self.logit else logits.sigmoid()


@pytest.mark.parametrize("score", ["score", "logit"])
def test_grad_cam_is_captums(score: str) -> None:
    case = Case("retinanet")
    stage = getattr(case.model.backbone.body, LAYER)
    for pick, made in enumerate(case.ask("grad_cam", LAYER, score=score)):
        classifier = RetinaNetScore(case.model, int(case.found.candidates[pick]), logit=score == "logit")
        peer = captum.attr.LayerGradCam(classifier, stage)
        expected = peer.attribute(
            case.forward.batch.pixels.clone().requires_grad_(),
            target=int(case.found.labels[pick]) + 1,
            relu_attributions=True,
        )[0, 0].detach()
        assert float(expected.max()) > 0
        assert float((made.values - expected).abs().max()) <= 1e-6 * float(expected.max())


def test_activation_is_captums() -> None:
    case = Case("retinanet")
    stage = getattr(case.model.backbone.body, LAYER)
    peer = captum.attr.LayerActivation(RetinaNetScore(case.model, 0, logit=False), stage)
    expected = normalise(peer.attribute(case.forward.batch.pixels)[0].mean(0))
    for made in case.ask("activation", LAYER):
        assert torch.allclose(made.values.double(), expected, atol=1e-6)


class ScoreOf:
    """pytorch-grad-cam's kind of target: the score of the detection that is found again."""

    def __init__(self, score: float) -> None:
        self.score = score

    def __call__(self, answer: dict[str, Tensor]) -> Tensor:
        """Return the score that is nearest."""
        return answer["scores"][(answer["scores"].detach() - self.score).abs().argmin()]


@pytest.mark.parametrize("architecture", ["retinanet", "faster-rcnn"])
def test_grad_cam_is_pytorch_grad_cams_through_the_whole_detector(architecture: str) -> None:
    """Its backward pass goes through torchvision's detector as it is, post-processing included."""
    case = Case(architecture)
    stage = getattr(case.model.backbone.body, LAYER)
    pixels = case.image.permute(2, 0, 1)[None] / 255
    for pick, made in enumerate(case.ask("grad_cam", LAYER)):
        with GradCAM(case.model, [stage]) as peer:
            peer.compute_input_gradient = True  # the weights are frozen
            peer(pixels, [ScoreOf(float(case.found.scores[pick]))])
            recorded = peer.activations_and_grads
            activations, gradients = (
                kept[0].detach().numpy() for kept in (recorded.activations, recorded.gradients)
            )
            expected = np.maximum(peer.get_cam_image(pixels, stage, [], activations, gradients)[0], 0)
        assert expected.max() > 0
        assert np.abs(made.values.numpy() - expected).max() <= 1e-5 * expected.max()


def test_the_weights_of_grad_cam_pp_are_pytorch_grad_cams() -> None:
    """Gradients of 0.1 and more, against which the 1e-6 in its denominator does not count."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(6, 5, 7, generator=generator)
    gradients = torch.randn(3, 6, 5, 7, generator=generator)
    gradients += 0.1 * gradients.sign()
    expected = GradCAMPlusPlus.get_cam_weights(
        None, None, None, None, whole.expand(3, -1, -1, -1).numpy(), gradients.numpy()
    )
    made = GradCamPlusPlus.weights(gradients, whole).numpy()
    assert np.allclose(made, expected, rtol=1e-4)


def test_d_rise_is_xaitk_saliencys() -> None:
    """The same masks and detections, scored by both.

    xaitk-saliency divides by the masks' sum at each pixel where the paper divides by N·p, takes the largest
    value as 1, and counts boxes in whole pixels, the last one included.
    """
    case = Case("faster-rcnn")
    count, cells = 24, 5
    made = case.ask(
        "d_rise", "image", samples=count, cells=cells, probability=0.5, centred=False, score_threshold=0.05
    )
    masks = RandomMasks.draw(0, range(count), cells, 0.5, (WIDTH, HEIGHT))
    h, w = made[0].values.shape
    seen = masks.at((torch.arange(w) + 0.5) * (WIDTH / w), (torch.arange(h) + 0.5) * (HEIGHT / h))
    limits = PostProcessing(0.05, case.detector.defaults.max_detections)
    answers = Perturbed(case.detector, case.image, settings=limits).found(masks)

    def rows(found: Detections) -> np.ndarray:
        last = found.boxes - found.boxes.new_tensor([0, 0, 1, 1])
        return torch.cat([last, torch.ones(len(found), 1), found.class_scores], 1).numpy()

    most = int(torch.bincount(answers.pictures, minlength=count).max())
    perturbed = np.zeros((count, most, 5 + len(LABELS)))
    perturbed[:, :, 5] = 1  # an empty place has a class vector, but no objectness
    for mask in range(count):
        own = rows(answers.detections[answers.pictures == mask])
        perturbed[mask, : len(own)] = own
    scoring = xaitk("impls.gen_detector_prop_sal.drise_scoring").DRISEScoring()
    expected = scoring.generate(rows(case.found), perturbed, seen.numpy())
    for values, peer in zip(made, expected, strict=True):
        mine = values.values.double() * count * 0.5 / seen.sum(0)
        mine /= mine.abs().max()
        assert float(mine.min()) < 0.95, "a map that says something"
        assert np.allclose(mine.numpy(), peer, atol=1e-5)
