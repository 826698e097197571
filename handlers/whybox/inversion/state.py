"""All that an inversion needs to go on: written after one step, read by the next, perhaps by another worker.

The tensors are stored as they are, to the bit, so that it makes no difference where the work is cut.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

VERSION = "1"


class StateError(ValueError):
    """Bytes that are no state of this inversion."""


@dataclass
class State:
    """Of an inversion after some iterations. Random numbers come from seed and iteration and need no state.

    Attributes:
        iteration: done so far.
        tensors: of the picture; see `whybox.inversion.parametrisation`.
        moments: of the optimiser, one or two for each tensor.
        sigma: of the next blur, in pixels.
        losses: of the last iteration, by name.
        curves: name → (iteration, value), in order.
        found: objects of the layout that were found when the detector last looked.
        unseen: seconds of iterations since then.
    """

    iteration: int
    tensors: list[Tensor]
    moments: list[Tensor]
    sigma: float
    losses: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    found: int = 0
    unseen: float = 0.0

    def dump(self) -> bytes:
        """Write; inverse of `load_state`."""
        told = {
            "version": VERSION,
            "iteration": self.iteration,
            "tensors": len(self.tensors),
            "sigma": self.sigma.hex(),
            "losses": self.losses,
            "curves": self.curves,
            "found": self.found,
            "unseen": self.unseen,
        }
        all_tensors = [*self.tensors, *self.moments]
        named = {f"{i:02}": tensor.detach().cpu().contiguous() for i, tensor in enumerate(all_tensors)}
        return save(named, {"state": json.dumps(told)})


def load_state(data: bytes, like: State) -> State:
    """Read a state.

    Args:
        data: from `State.dump`.
        like: a state of the same inversion at its beginning: what shapes must be, and where to put it.

    Raises:
        StateError: if the bytes are none, or of an inversion of another size or other settings.
    """
    try:
        told = json.loads(_metadata(data)["state"])
        named = load(data)
        tensors = [named[f"{i:02}"] for i in range(len(named))]
        count, version = int(told["tensors"]), told["version"]
        state = State(
            int(told["iteration"]),
            tensors[:count],
            tensors[count:],
            float.fromhex(told["sigma"]),
            {name: float(value) for name, value in told["losses"].items()},
            {name: [(int(i), float(v)) for i, v in curve] for name, curve in told["curves"].items()},
            int(told["found"]),
            float(told["unseen"]),
        )
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StateError(f"not the state of an inversion: {type(error).__name__}") from error
    shapes, wanted = ([t.shape for t in (*s.tensors, *s.moments)] for s in (state, like))
    if version != VERSION or shapes != wanted or len(state.tensors) != len(like.tensors):
        raise StateError("the state of another inversion")
    finite = all(bool(torch.isfinite(t).all()) for t in tensors)
    if not finite or state.iteration < 1:
        raise StateError("a state with values that cannot be")
    device = like.tensors[0].device
    state.tensors = [t.to(device) for t in state.tensors]
    state.moments = [t.to(device) for t in state.moments]
    return state


def _metadata(data: bytes) -> dict[str, str]:
    """Read the header of a safetensors file: its length in eight bytes, then JSON."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
