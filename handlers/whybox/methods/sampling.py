"""The contract of methods that draw samples: a plan, and chunks of it that add up.

A chunk may be worked on in any worker, at any time: it knows nothing but the picture, the request and the
plan's state. Its samples are numbered, and sample i is drawn from the seed and i alone (`generator`), so the
work can be cut anywhere.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whybox.detectors.base import Detections, Detector, PostProcessing
from whybox.methods.base import Map, Method, ParamValue, Question
from whybox.patience import Patience
from whybox_proto import maps
from whybox_proto.errors import ContractError
from whybox_proto.sums import MAX_CELLS, Chunk, Totals, chunks, members
from whybox_proto.v1 import types_pb2, worker_pb2

MAX_CHUNK_BYTES = 56 * 2**20
"""Of the sums of one chunk; TorchServe is set to take 64 MiB, and kills a worker that passes its limit."""

_SHARED = ("picture", "targets", "layer", "params", "seed", "max_side", "memory", "patience", "settings")
"""Attributes that a chunk's task takes over from its question."""


@dataclass(frozen=True)
class SamplingPlan:
    """How a sampling method will work.

    Attributes:
        samples: of all rounds, where no budget says otherwise.
        round_samples: of a round; a chunk should take one or two seconds, so that it neither holds a worker
            nor is spent on its overhead. It must not depend on who does the work.
        cells: (h, w) of the largest map.
        groups: into which the detections are cut, in order, so that one chunk's sums are not too large; at
            most as many as there are detections.
        state: what the chunks need to know beside the picture, the request and the detections.
        most: samples that there are, to which a larger budget is cut; None where there is no end of them.
    """

    samples: int
    round_samples: int
    cells: tuple[int, int]
    groups: int
    state: Mapping[str, Tensor]
    most: int | None = None


@dataclass(frozen=True)
class Task:
    """One chunk, as a method sees it.

    Attributes:
        detections: those of the chunk's group.
        state: as in `SamplingPlan`.
        first, count: which samples to draw.
        group, groups: which of the plan's groups it is, for state that is kept by detection.
        picture: uint8 (H, W, 3), upright.
        targets, layer, params, seed, max_side, memory, patience, settings: as in `Question`.
    """

    detections: Detections
    state: Mapping[str, Tensor]
    first: int
    count: int
    group: int
    groups: int
    picture: Tensor
    targets: Sequence[str]
    layer: str
    params: Mapping[str, ParamValue]
    seed: int
    max_side: int
    memory: int
    patience: Patience
    settings: PostProcessing | None = None

    @classmethod
    def of(
        cls, found: Detections, state: Mapping[str, Tensor], groups: int, chunk: Chunk, **asked: Any
    ) -> Task:
        """Return the task of one chunk.

        Args:
            found: the detections of all groups.
            state: of the plan.
            groups: of the plan.
            chunk: which one.
            asked: the rest of the attributes.
        """
        own = members(len(found), groups, chunk.group)
        return cls(found[own.start : own.stop], state, chunk.first, chunk.count, chunk.group, groups, **asked)

    @classmethod
    def of_question(cls, question: Question, plan: SamplingPlan, chunk: Chunk) -> Task:
        """Return the task of one chunk where question and plan are at hand."""
        shared = {name: getattr(question, name) for name in _SHARED}
        return cls.of(question.detections, plan.state, plan.groups, chunk, **shared)

    def own(self, rows: Tensor) -> Tensor:
        """Cut state that has a row for each detection of the plan to the rows of the chunk's group."""
        part = members(len(rows), self.groups, self.group)
        return rows[part.start : part.stop]


@dataclass(frozen=True)
class Sum:
    """What a chunk adds to one map.

    Attributes:
        values: float32 (h, w), the sum over the chunk's samples.
        weight: what to divide it by: a number, or float32 (h, w), a number for each cell. A cell without
            weight takes the value of its nearest neighbour that has some.
        region, signed: as in `Map`.
    """

    values: Tensor
    weight: float | Tensor
    region: tuple[float, float, float, float]
    signed: bool = False


class SamplingMethod(Method):
    """A method whose maps are means over samples, and that obeys a budget."""

    sampling = True

    @abstractmethod
    def plan(self, detector: Detector, question: Question) -> SamplingPlan:
        """Say how the question will be answered; it has been checked and has at least one detection."""

    @abstractmethod
    def sample(self, detector: Detector, task: Task) -> list[list[Sum]]:
        """Work on one chunk; for each detection of its group a sum for each target, in the order asked."""

    def checked_plan(self, detector: Detector, question: Question) -> SamplingPlan:
        """Plan, and refuse what would be too large to send or to add up.

        Raises:
            ContractError: `response_too_large`, with the way to ask for less.
        """
        plan = self.plan(detector, question)
        count, targets = len(question.detections), len(question.targets)
        cells = plan.cells[0] * plan.cells[1] * targets
        largest = max(len(members(count, plan.groups, group)) for group in range(plan.groups))
        # Values and weights of four bytes each, at most.
        if cells * count > MAX_CELLS or 8 * cells * largest > MAX_CHUNK_BYTES:
            most = min(MAX_CELLS, MAX_CHUNK_BYTES // 8 * count // largest)
            raise ContractError(
                "response_too_large",
                "the heat maps are too large to be added up",
                field="output.max_side",
                expected=f"at most {most} cells in all maps: ask for a smaller output.max_side, "
                "for fewer targets or detections",
                got=f"{cells * count} cells",
            )
        return plan

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        """Work on all chunks, one after the other, until the samples or the time are used up.

        At least one chunk is worked on. Detections that were not reached get no maps: their row is empty.
        """
        started = time.monotonic()
        plan = self.checked_plan(detector, question)
        message = plan_message(plan, question)
        totals = Totals(message)
        count = len(question.detections)
        parts: dict[int, list[Sum]] = {}
        for chunk in chunks(message):
            question.patience.check()
            late = question.seconds is not None and time.monotonic() - started > question.seconds
            if late and totals.started:
                break
            task = Task.of_question(question, plan, chunk)
            rows = self.sample(detector, task)
            totals.add(chunk, sums_message(rows, task, self.name, count))
            parts.update(zip(members(count, plan.groups, chunk.group), rows, strict=True))
        question.warnings.extend(totals.warnings(count))
        made = {(m.detection_index, m.target): m for m in totals.heat_maps(list(question.targets), "f32")}

        def map_of(detection: int, target: str, part: Sum) -> Map:
            written = made[detection, target]
            return Map(
                torch.from_numpy(maps.decode(written)),
                part.region,
                part.signed,
                written.samples,
                written.standard_error if written.HasField("standard_error") else None,
            )

        return [
            [map_of(i, target, part) for target, part in zip(question.targets, parts[i], strict=True)]
            if i in parts
            else []
            for i in range(count)
        ]


def generator(seed: int, sample: int) -> torch.Generator:
    """Return the source of one sample's random numbers, on the CPU; independent from those of all others."""
    # Multiplied by odd constants, so that neighbouring seeds and samples share nothing (SplitMix64's).
    mixed = (seed * 0x9E3779B97F4A7C15 + (sample + 1) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) % 2**64
    return torch.Generator().manual_seed((mixed ^ (mixed >> 29)) % 2**63)


def raster(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return the (h, w) of a map made in pixel space: the picture's, its longer side at most `max_side`."""
    shrink = min(1.0, max_side / max(width, height))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def plan_message(plan: SamplingPlan, question: Question) -> worker_pb2.Plan:
    """Write a plan, without its answer and its state; a budget in samples takes the plan's own's place."""
    samples = plan.samples if question.samples is None else question.samples
    if plan.most is not None:
        samples = min(samples, plan.most)
    return worker_pb2.Plan(samples=samples, round_samples=plan.round_samples, groups=plan.groups)


def sums_message(rows: Sequence[Sequence[Sum]], task: Task, method: str, detections: int) -> worker_pb2.Sums:
    """Write what a chunk found.

    Args:
        rows: of the group's detections, with a sum for each target.
        task: the chunk.
        method: name of the method.
        detections: of all groups.
    """
    first = members(detections, task.groups, task.group).start
    message = worker_pb2.Sums()
    for i, row in enumerate(rows):
        for target, part in zip(task.targets, row, strict=True):
            height, width = part.values.shape
            header = types_pb2.HeatMap(
                detection_index=first + i,
                target=target,
                method=method,
                layer=task.layer,
                region=part.region,
                width=width,
                height=height,
                signed=part.signed,
            )
            written = message.sums.add(heat_map=header, values=_bytes(part.values))
            if isinstance(part.weight, Tensor):
                written.weights = _bytes(part.weight)
            else:
                written.weight = part.weight
    return message


def _bytes(values: Tensor) -> bytes:
    written: bytes = values.detach().cpu().numpy().astype("<f4").tobytes()
    return written
