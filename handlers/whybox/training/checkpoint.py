"""The state of a training between two runs, and the weights that come out of it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from whybox.detectors.small import build_small
from whybox.scenes import CLASSES
from whybox.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a training is: `step` updates done, in `seconds` of all its runs."""

    recipe: Recipe
    step: int
    seconds: float


def save_checkpoint(
    path: Path, state: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> None:
    """Write model, optimiser, random state and progress; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(
        {
            "recipe": json.dumps(asdict(state.recipe)),
            "step": state.step,
            "seconds": state.seconds,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
        partial,
    )
    os.replace(partial, path)


def load_checkpoint(
    path: Path, recipe: Recipe, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> Checkpoint:
    """Restore model, optimiser and random generators from `path`; ValueError if it is of another recipe."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != json.dumps(asdict(recipe)):
        raise ValueError(
            f"{path}: expected the checkpoint of {asdict(recipe)}, got that of {state['recipe']}"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"], device)
    return Checkpoint(recipe, step=state["step"], seconds=state["seconds"])


def save_weights(path: Path, model: nn.Module, architecture: str) -> None:
    """Write the weights as safetensors, floats in fp16; architecture and labels go into the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, path, metadata={"architecture": architecture, "labels": json.dumps(CLASSES)})


def load_weights(path: Path, architecture: str) -> nn.Module:
    """The model of a weights file, in fp32 and evaluation mode."""
    model = build_small(architecture, len(CLASSES))
    model.load_state_dict(load_file(path))
    return model.eval()
