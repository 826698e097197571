"""The training loop: AdamW, warm-up and cosine, bf16 with losses in fp32, checkpoints that resume exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from whybox.detectors.small import build_small
from whybox.scenes import CLASSES
from whybox.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from whybox.training.data import Target, batches
from whybox.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Trained:
    """A model after `step` steps, with the seconds they took in all runs together."""

    model: nn.Module
    step: int
    seconds: float


def train(
    recipe: Recipe,
    *,
    device: str = "auto",
    workers: int = 1,
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    resume: bool = False,
    stop_after: int | None = None,
    progress: bool = True,
) -> Trained:
    """Train the recipe's model from random weights, or from where `checkpoint` left off.

    Args:
        recipe: What to train.
        device: `cpu`, `cuda`, … or `auto` for CUDA where there is one.
        workers: Rendering processes; 0 renders in this one.
        checkpoint: File to keep the state in, written every `checkpoint_every` steps and at the end.
        checkpoint_every: Steps between two checkpoints.
        resume: Continue from `checkpoint` if the file exists.
        stop_after: Stop after that many steps of the recipe, as if interrupted.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: the checkpoint belongs to another recipe.
        FloatingPointError: the loss is not finite.
        RuntimeError: a rendering process died.
    """
    place = torch.device(pick_device(device))
    torch.manual_seed(recipe.seed)
    model = build_small(recipe.architecture, len(CLASSES)).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    optimiser = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
    state = Checkpoint(recipe, step=0, seconds=0.0)
    if resume and checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, recipe, model, optimiser, place)

    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    step, before, started = state.step, state.seconds, time.monotonic()
    loader = batches(
        recipe,
        masks=recipe.architecture == "mask-rcnn",
        first_step=step,
        workers=workers if step < last else 0,
    )
    bar = tqdm(
        total=recipe.steps, initial=step, desc=recipe.name, unit="step", disable=not progress, mininterval=5
    )
    with bar, _losses_in_fp32(model):
        for images, targets in loader if step < last else ():
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * schedule(step, recipe)
            loss = _step(model, optimiser, images, targets, place, recipe.clip)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            done = step == last
            if checkpoint is not None and (done or step % checkpoint_every == 0):
                seconds = before + time.monotonic() - started
                save_checkpoint(checkpoint, Checkpoint(recipe, step, seconds), model, optimiser, place)
            if done:
                break
    model.eval()
    return Trained(model, step, before + time.monotonic() - started)


def pick_device(name: str) -> str:
    """`auto` → `cuda` where there is one, else `cpu`; any other name is returned as it is."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def schedule(step: int, recipe: Recipe) -> float:
    """Factor of the peak learning rate at `step` (from 0): linear warm-up, then half a cosine down to 0."""
    warm_up = min(recipe.warm_up, recipe.steps // 4)
    if step < warm_up:
        return (step + 1) / warm_up
    share = (step - warm_up) / max(recipe.steps - warm_up, 1)
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels alone, none for norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    targets: list[Target],
    device: torch.device,
    clip: float,
) -> float:
    """One update on images uint8 [B, 3, H, W]; returns the loss."""
    pixels = images.to(device, non_blocking=True).float().div_(255.0)
    moved = [{name: value.to(device) for name, value in target.items()} for target in targets]  # type: ignore[attr-defined]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        losses: dict[str, Tensor] = model(list(pixels), moved)
    loss = torch.stack([value.float() for value in losses.values()]).sum()
    if not torch.isfinite(loss):
        figures = {name: float(value) for name, value in losses.items()}
        raise FloatingPointError(f"loss: expected a finite number, got {figures}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return float(loss.detach())


# Modules whose outputs enter a loss. Their outputs leave bf16 here; what follows computes in fp32.
_SCORERS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")


@contextmanager
def _losses_in_fp32(model: nn.Module) -> Iterator[None]:
    """Within it, heads compute in bf16 under autocast, box arithmetic and losses in fp32."""
    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(_to_fp32) for name in _SCORERS if name in modules]
    single_stage = getattr(model, "compute_loss", None)

    def in_fp32(*arguments: object) -> object:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return single_stage(*arguments)  # type: ignore[misc]

    if single_stage is not None:
        model.compute_loss = in_fp32  # type: ignore[assignment]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if single_stage is not None:
            del model.compute_loss


def _to_fp32(module: nn.Module, inputs: object, output: object) -> object:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _to_fp32(module, inputs, value) for name, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(_to_fp32(module, inputs, value) for value in output)
    return output
