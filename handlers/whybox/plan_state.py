"""The state of a sampling plan: out to the gateway, which does not look into it, and back with every chunk.

A chunk would believe whatever comes back: a candidate that there is not, a score that is no number, the plan
of another picture. So the state is sealed with a digest of itself and of what it was planned for, and opened
for that alone: it is what a worker planned, and methods need not check their own tensors. The digest is
against mistakes and not against forgers; those who can talk to a worker past the gateway are trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2

_DIGEST_BYTES = 32


def seal(
    tensors: Mapping[str, Tensor],
    model: types_pb2.Model,
    request: explainer_pb2.ExplainRequest,
    groups: int,
) -> bytes:
    """Write the state of a plan.

    Args:
        tensors: by name, on any device.
        model: the description of the model that planned; all workers of an archive have the same.
        request: that was planned, with its picture.
        groups: of the plan.
    """
    written: bytes = safetensors.torch.save(
        {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )
    return _digest(written, model, request, groups) + written


def unseal(
    state: bytes, model: types_pb2.Model, request: explainer_pb2.ExplainRequest, groups: int
) -> dict[str, Tensor]:
    """Read the state of a plan; the arguments are those of `seal`.

    Raises:
        ContractError: `invalid_request`, if it is not what `seal` wrote for the same arguments.
    """
    digest, written = state[:_DIGEST_BYTES], state[_DIGEST_BYTES:]
    if digest != _digest(written, model, request, groups):
        raise ContractError(
            "invalid_request",
            "the plan's state cannot be read",
            field="state",
            expected="the state of this model's plan of this request, as it was given",
            got=f"{len(state)} bytes that are another",
        )
    tensors: dict[str, Tensor] = safetensors.torch.load(written)
    return tensors


def _digest(
    written: bytes, model: types_pb2.Model, request: explainer_pb2.ExplainRequest, groups: int
) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    parts = (message.SerializeToString(deterministic=True) for message in (model, request))
    for part in (*parts, str(groups).encode(), written):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
