"""The loop of layout inversion: pseudo-targets, a step of the picture, and again.

Source: Cao and Johnson 2021, sections 3.2 and 3.3. Two stages are inverted together: each has pseudo-targets
of its own, and the second looks at the regions that the first proposes at the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from whybox.detectors.base import Frame, WhiteBoxDetector
from whybox.detectors.stage_outputs import StageOutputs
from whybox.inversion.augmentation import View, augment
from whybox.inversion.channels import uneven_channels
from whybox.inversion.filters import distance_from_grey, total_variation
from whybox.inversion.layout import Layout
from whybox.inversion.losses import mask_bins, mask_loss, stage_losses
from whybox.inversion.parametrisation import blur_tensors, clip, picture_of, start
from whybox.inversion.settings import Settings
from whybox.inversion.state import State
from whybox.inversion.targets import Objects, assign, assign_single
from whybox.methods.sampling import generator
from whybox_proto.errors import ContractError

CURVE_POINTS = 200
"""Of a loss curve, about: the iterations between two follow from all there are."""

WHOLE = 0.999
"""Share of an object that must be in view for its mask to be compared."""

ENOUGH = 0.5
"""Share of an object that must be in view for it to be asked for."""

OBJECTNESS = 0.5
"""Score of a first stage's candidate from which it shall be background where nothing is."""


class Inverter:
    """One inversion: a detector, a layout, settings and a seed.

    Attributes:
        detector: to be inverted.
        layout: that it shall recognise.
        settings: how.
        seed: of all random numbers.
    """

    def __init__(self, detector: WhiteBoxDetector, layout: Layout, settings: Settings, seed: int) -> None:
        """Take what to do.

        Raises:
            ValueError: if the detector cannot be inverted.
            ContractError: if the settings leave nothing to aim at.
        """
        if not detector.stages:
            raise ValueError(f"{type(detector).__name__} cannot be inverted")
        self.detector = detector
        self.layout = layout
        self.settings = settings
        self.seed = seed
        self._bins: Tensor | None = None
        able = ["cls", "reg", *(["mask"] if detector.masks and layout.masked else [])]
        asked = able if settings.losses == "all" else settings.losses.split("+")
        self.losses = frozenset(asked)
        if "mask" in self.losses and "mask" not in able:
            what = "the layout has no masks" if detector.masks else "the detector has no masks"
            raise ContractError(
                "invalid_argument",
                what,
                field="params.losses",
                expected=f"some of {', '.join(able)}",
                got=settings.losses,
            )
        if not any(getattr(settings, f"weight_{name}") for name in self.losses):
            raise ContractError(
                "invalid_argument",
                "there is nothing that the picture is made for",
                field=f"params.weight_{min(self.losses)}",
                expected=f"a weight above 0 of {' or '.join(sorted(self.losses))}",
                got="0",
            )

    def begin(self, picture: Tensor | None = None) -> State:
        """Return the state before the first iteration.

        Args:
            picture: uint8 (H, W, 3) to start from; by default noise around the middle grey.
        """
        settings, layout = self.settings, self.layout
        if picture is None:
            noise = torch.randn(3, layout.height, layout.width, generator=generator(self.seed, -1))
            first = (0.5 + settings.init_std * noise).clamp(0, 1)
        else:
            first = picture.permute(2, 0, 1).float() / 255
        tensors = start(settings.parametrisation, first.to(self.detector.device))
        moments = [torch.zeros_like(t) for t in tensors for _ in range(1 + (settings.optimiser == "adam"))]
        return State(0, tensors, moments, settings.blur_sigma)

    def advance(self, state: State, seconds: float, between: Callable[[], None] = lambda: None) -> None:
        """Do iterations for about so many seconds, one at least, in place.

        Args:
            state: to go on from.
            seconds: that are met as nearly as whole iterations can.
            between: called before each iteration; what it raises ends the work.
        """
        now = time.monotonic()
        ends = now + seconds
        done = False
        while not done:
            between()
            self.iterate(state)
            began, now = now, time.monotonic()
            done = self.finished(state) or now + (now - began) / 2 >= ends

    def finished(self, state: State) -> bool:
        """Whether all iterations are done."""
        return state.iteration >= self.settings.iterations

    def picture(self, state: State) -> Tensor:
        """Return the picture: uint8 (H, W, 3)."""
        with torch.no_grad():
            made = picture_of(self.settings.parametrisation, state.tensors)
            return (made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()

    def iterate(self, state: State) -> None:
        """Do one iteration: new pseudo-targets, and one step of the picture towards them."""
        settings = self.settings
        tensors = [tensor.detach().requires_grad_() for tensor in state.tensors]
        total, parts = self.objective(tensors, state.iteration)
        gradients = torch.autograd.grad(total, tensors)
        self._step(state, gradients)
        clip(settings.parametrisation, state.tensors)
        state.iteration += 1
        if settings.blur_every and state.iteration % settings.blur_every == 0:
            blur_tensors(state.tensors, max(state.sigma, settings.blur_least))
            state.sigma *= settings.blur_decay
        state.losses = {name: float(value) for name, value in parts.items()}
        every = math.ceil(settings.iterations / CURVE_POINTS)
        if state.iteration % every == 0 or state.iteration in (1, settings.iterations):
            for name, value in state.losses.items():
                state.curves.setdefault(name, []).append((state.iteration, value))

    def objective(self, tensors: list[Tensor], iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what an iteration makes less, and its parts by name, weighted, ``total`` among them.

        Differentiable by the tensors; the pseudo-targets are those of this picture, and held.
        """
        settings, layout = self.settings, self.layout
        picture = picture_of(settings.parametrisation, tensors)
        view = View.of(picture, layout.boxes)
        if not settings.settled(iteration):
            view = augment(view, settings, self.seed, iteration)
        parts = self._detector_losses(view, iteration)
        if settings.tv_weight:
            parts["tv"] = settings.tv_weight * total_variation(picture, settings.tv_exponent)
        if settings.norm_weight:
            parts["norm"] = settings.norm_weight * distance_from_grey(picture, settings.norm_exponent)
        nothing = 0 * picture.sum()  # all there is where everything asked for has been moved out of view
        total = torch.stack([nothing, *parts.values()]).sum()
        return total, {**{name: part.detach() for name, part in parts.items()}, "total": total.detach()}

    def _detector_losses(self, view: View, iteration: int) -> dict[str, Tensor]:
        settings, defaults = self.settings, self.detector.defaults
        batch = self.detector.embed(view.picture)
        boxes = batch.frames[0].to_network(view.boxes)
        objects = Objects(boxes, self.layout.labels, view.visible >= ENOUGH)
        whole = [i for i in self.layout.masked if float(view.visible[i]) > WHOLE]
        parts: dict[str, Tensor] = {}
        unevenness = 0.0 if settings.settled(iteration) else settings.channel_noise
        with uneven_channels(self.detector, unevenness, generator(~self.seed, iteration)):
            stages = self.detector.stage_outputs(batch, objects.boxes if settings.single else None)
        weights = {
            "cls": settings.weight_cls,
            "logit": settings.weight_logit if "cls" in self.losses else 0.0,
            "reg": settings.weight_reg,
        }
        for said in stages:
            first_of_two = said.stage == "rpn"
            if settings.single and first_of_two:
                continue
            if said.stage == "queries":
                losses = self._query_losses(said, objects, batch.frames[0])
            else:
                targets = (
                    assign_single(said, objects)
                    if settings.single
                    else assign(
                        said,
                        objects,
                        most=settings.matched(said.stage, iteration),
                        score_threshold=OBJECTNESS if first_of_two else defaults.score_threshold,
                        overlap=defaults.iou_threshold,
                        background=settings.background,
                    )
                )
                losses = stage_losses(said, targets, objects, settings)
            for name, value in losses.items():
                weight = weights[name] * (settings.weight_rpn if first_of_two else 1.0)
                if weight and (name in self.losses or name == "logit"):
                    parts[f"{said.stage}_{name}" if len(stages) > 1 else name] = weight * value
            if said.masks is not None and "mask" in self.losses and whole:
                parts["mask"] = settings.weight_mask * mask_loss(said, objects, whole, self._mask_bins)
        return parts

    def _query_losses(self, said: StageOutputs, objects: Objects, frame: Frame) -> dict[str, Tensor]:
        # SciPy comes with the families that have queries, and is nowhere else needed.
        from whybox.inversion.queries import match_queries, query_losses

        targets = (
            assign_single(said, objects)
            if self.settings.single
            else match_queries(said, objects, frame, background=self.settings.background)
        )
        return query_losses(said, targets, objects, frame)

    def _mask_bins(self, side: int) -> Tensor:
        """What the masks shall be, cut once: they lie in their boxes, wherever these are moved."""
        if self._bins is None or self._bins.shape[-1] != side:
            assert self.layout.masks is not None
            self._bins = mask_bins(self.layout.masks, self.layout.boxes, side)
        return self._bins

    @torch.no_grad()
    def _step(self, state: State, gradients: tuple[Tensor, ...]) -> None:
        """Take one step of SGD with momentum, or of Adam (Kingma and Ba 2015, algorithm 1), in place."""
        settings, count = self.settings, state.iteration + 1
        rate = settings.learning_rate * settings.decay ** (state.iteration // settings.decay_every)
        rate *= settings.strength(state.iteration)
        if settings.optimiser == "sgd":
            for tensor, velocity, gradient in zip(state.tensors, state.moments, gradients, strict=True):
                velocity.mul_(settings.momentum).add_(gradient)
                tensor.sub_(velocity, alpha=rate)
            return
        beta, square = settings.momentum, 0.999
        firsts, seconds = state.moments[0::2], state.moments[1::2]
        for tensor, first, second, gradient in zip(state.tensors, firsts, seconds, gradients, strict=True):
            first.lerp_(gradient, 1 - beta)
            second.mul_(square).addcmul_(gradient, gradient, value=1 - square)
            size = (second / (1 - square**count)).sqrt_().add_(settings.epsilon)
            tensor.addcdiv_(first, size, value=-rate / (1 - beta**count))
