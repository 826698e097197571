"""The transformers family: DETR and its descendants, whose candidates are queries.

The library's own modules do all the arithmetic. What is ours is where their forward pass begins: the backbone
runs stage by stage, and the rest on maps that are given, so that every layer can be tapped and changed.

Letters: B pictures, Q queries, K classes, d channels of the encoder's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from torchvision.transforms.functional import normalize
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput

from whybox.detectors.base import (
    Attention,
    Batch,
    Candidates,
    Contenders,
    Forward,
    Frame,
    Grids,
    Layer,
    Outputs,
    PostProcessing,
    Trace,
    require_images,
)
from whybox.detectors.frozen import can_be_frozen, frozen
from whybox.detectors.network import PROBE, NetworkDetector, batches_of
from whybox.detectors.postprocess import contenders
from whybox.detectors.query_attention import sampled_points, samples_points, spread
from whybox.detectors.query_taps import Ascent, Below, Entry, QueryTap, QueryTaps, QueryViews
from whybox.detectors.stage_outputs import StageOutputs

THRESHOLD = 0.5
"""Of the library's own `post_process_object_detection`."""

MOST_PROBED = 1024
"""Side of the largest picture that is tried to find one with a cell for each query, in network pixels."""


@dataclass(frozen=True)
class Kind:
    """What an architecture does in its own way.

    Attributes:
        model: class in the library.
        processor: class in the library, of its image processor.
        softmax: its classes exclude each other, the last one being no object; a query then answers with its
            best class alone. Else each class has a sigmoid.
        limit: most (query, class) pairs that are kept; None for as many as there are queries.
        maps: the encoder's memory comes as maps; else as tokens, level after level.
        alone: a 1x1 convolution is all that the last stage goes into.
    """

    model: str
    processor: str
    softmax: bool = False
    limit: int | None = None
    maps: bool = False
    alone: bool = False


KINDS: dict[str, Kind] = {
    "detr": Kind("DetrForObjectDetection", "DetrImageProcessor", softmax=True, alone=True),
    "conditional_detr": Kind(
        "ConditionalDetrForObjectDetection", "ConditionalDetrImageProcessor", limit=100, alone=True
    ),
    "deformable_detr": Kind("DeformableDetrForObjectDetection", "DeformableDetrImageProcessor", limit=100),
    "rt_detr": Kind("RTDetrForObjectDetection", "RTDetrImageProcessor", maps=True),
    "rt_detr_v2": Kind("RTDetrV2ForObjectDetection", "RTDetrImageProcessor", maps=True),
    "d_fine": Kind("DFineForObjectDetection", "RTDetrImageProcessor", maps=True),
}
"""By the library's ``model_type``."""


@dataclass(frozen=True)
class _Said:
    """What one run of the network above its backbone gives.

    Attributes:
        logits: float (B, Q, K'), background included.
        boxes: float (B, Q, 4), centre and size as shares of the picture.
        memory: of the encoder, as the library has it.
        queries: int64 (B, Q), the cells of the memory that the queries were taken from; None where queries
            are the same for every picture.
    """

    logits: Tensor
    boxes: Tensor
    memory: Any
    queries: Tensor | None

    @property
    def raw(self) -> dict[str, Tensor]:
        """What the head says of the queries."""
        return {"logits": self.logits, "boxes": self.boxes}


class TransformersDetector(NetworkDetector):
    """A query-based detector of the library, with a backbone of stages.

    What the network itself holds constant when it is trained is constant here: which cells of the memory
    become queries (RT-DETR, D-FINE, two-stage Deformable DETR) and with which boxes they begin, and the boxes
    that a decoder layer hands to the next.
    """

    traces = True
    stages = ("queries",)

    def __init__(
        self, model: Any, processor: Any, labels: Sequence[str], *, background: bool = False
    ) -> None:
        """Wrap a model.

        Args:
            model: one of `KINDS`; it is put in evaluation mode, its weights frozen.
            processor: the library's image processor of the checkpoint.
            labels: the classes' names, no-object left out.
            background: the first class is an unused background (so in DETR's COCO weights).

        Raises:
            ValueError: if the model, its backbone, the processor or the number of labels do not fit.
        """
        kind = KINDS.get(model.config.model_type)
        if kind is None or type(model).__name__ != kind.model:
            known = ", ".join(k.model for k in KINDS.values())
            raise ValueError(f"expected one of {known}; got {type(model).__name__}")
        super().__init__(model, labels)
        self.kind = kind
        self.processor = processor
        self.first = int(background)
        count = int(model.config.num_labels)
        hint = "" if background else f" (or {count - 1} and background: true, if its first class is unused)"
        self.require_labels(count - self.first, hint)
        if getattr(model.config, "anchor_image_size", None):
            # Anchors made once, for one size; made for each picture they are the same, and of any size.
            model.config.anchor_image_size = None
        self._norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self._convs = [
            module for module in model.modules() if isinstance(module, nn.Conv2d) and can_be_frozen(module)
        ]
        self._body = model.model.backbone.model
        if not (hasattr(self._body, "embedder") and hasattr(getattr(self._body, "encoder", None), "stages")):
            raise ValueError(
                "backbone: expected one of stages, such as ResNet or HGNetV2; "
                f"got {type(self._body).__name__}"
            )
        size = getattr(processor, "pad_size", None)
        if processor.do_pad and size:
            raise ValueError(
                "preprocessor_config.json: pad_size: expected none, as pictures padded to one size are not "
                f"supported; got {dict(size) if hasattr(size, 'get') else size}. If resizing "
                "alone makes every picture of that size, take it out; else train with another size, such as "
                "height and width, or shortest_edge and longest_edge"
            )
        self._used = tuple(self._body.out_features)
        self._selector = self._find_selector()
        self._read_sizes()
        queries = int(model.config.num_queries)
        self.defaults = PostProcessing(THRESHOLD, kind.limit or queries, "none")
        if kind.softmax:
            self.defaults = replace(self.defaults, max_detections=queries)
        self.layers = self._find_layers()
        self.attends = tuple(part for part in ("decoder", "encoder") if self._blocks(part))

    def _read_sizes(self) -> None:
        """Find which pictures would vanish when they are resized."""
        size = self.processor.size if self.processor.do_resize else {}
        if size.get("shortest_edge") and size.get("longest_edge"):
            self.max_aspect = int(size["longest_edge"]) - 1
        elif size.get("max_height") and size.get("max_width"):
            self.max_aspect = min(int(size["max_height"]), int(size["max_width"])) - 1

    # Pictures

    def prepare(self, images: Sequence[Tensor]) -> list[tuple[list[int], Batch]]:
        """See `WhiteBoxDetector.prepare`; by the library's image processor, nothing padded."""
        require_images(images)
        prepared = []
        for image in images:
            made = self.processor(
                images=[image.permute(2, 0, 1).to(self.device)],
                input_data_format="channels_first",
                do_pad=False,
                return_tensors="pt",
            )
            pixels = made["pixel_values"].to(self.weight.dtype)  # [1, 3, H, W]
            prepared.append((pixels, Frame(image.shape[1], image.shape[0], pixels.shape[3], pixels.shape[2])))
        return batches_of(prepared)

    def embed(self, picture: Tensor) -> Batch:
        """See `WhiteBoxDetector.embed`."""
        processor, pixels = self.processor, picture[None]
        if processor.do_resize:
            pixels = processor.resize(pixels, size=processor.size, resample=processor.resample)
        pixels = pixels * (255 * processor.rescale_factor if processor.do_rescale else 255)
        if processor.do_normalize:
            pixels = normalize(pixels, list(processor.image_mean), list(processor.image_std))
        return Batch(pixels, (Frame(picture.shape[2], picture.shape[1], pixels.shape[3], pixels.shape[2]),))

    # The network

    @torch.no_grad()
    def forward(self, batch: Batch, *, keep: bool = False) -> Forward:
        """See `WhiteBoxDetector.forward`."""
        stages = self._climb(batch.pixels)
        return self._forward(batch, stages, self._run(batch.pixels, stages), keep=keep)

    def _forward(self, batch: Batch, stages: dict[str, Tensor], said: _Said, *, keep: bool) -> Forward:
        extra: dict[str, Any] = {name: value.detach() for name, value in said.raw.items()}
        extra["queries"] = said.queries
        if not keep:
            return Forward(batch, {}, {}, extra)
        levels = zip(self._memory_names, self._maps_of(said.memory, stages), strict=True)
        return Forward(batch, stages, dict(levels), extra)

    def _climb(self, x: Tensor, start: str | None = None) -> dict[str, Tensor]:
        """Run the backbone from the pixels, or from a stage's map: that map and those above it."""
        maps = {} if start is None else {start: x}
        with self._differentiable():
            if start is None:
                x = self._body.embedder(x)
            below = start is not None
            for name, stage in zip(self._stage_names, self._body.encoder.stages, strict=True):
                if not below:
                    x = maps[name] = stage(x)
                below = below and name != start
        return maps

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Have batch norms written out, and convolutions keep no inputs, in the block, for gradients.

        PyTorch's own gradient of a batch norm in evaluation is wrong on CPUs (seen with 2.15) where the
        gradient that comes in has its channels last in memory and the map has not: so below a transformer.
        """
        with ExitStack() as stack:
            if torch.is_grad_enabled():
                for norm in self._norms:
                    stack.enter_context(_substituted(norm, written_out(norm)))
                for conv in self._convs:
                    stack.enter_context(_substituted(conv, frozen(conv)))
            yield

    @property
    def _stage_names(self) -> list[str]:
        return [f"stage{i + 1}" for i in range(len(self._body.encoder.stages))]

    def _run(
        self,
        pixels: Tensor,
        stages: Mapping[str, Tensor],
        *,
        memory: Any = None,
        queries: Tensor | None = None,
        eager: bool = False,
        watch: Mapping[nn.Module, Callable[[Any], Any]] | None = None,
        record: Mapping[nn.Module, list[tuple[dict[str, Any], Any]]] | None = None,
    ) -> _Said:
        """Run the network above its backbone.

        Args:
            pixels: float (B, 3, H, W), whose shape alone counts.
            stages: maps of the backbone.
            memory: taken for the encoder's, in the library's form; None for its own.
            queries: int64 (B, Q), the cells that queries are taken from; None for the network's own choice.
            eager: with attention that knows its weights; see `eager_attention`.
            watch: modules whose outputs are shown to somebody, who may return others to be taken for them.
            record: modules, each with a list that their keyword arguments and outputs are put into.
        """
        features: Any = BackboneOutput()
        features.feature_maps = tuple(stages[name] for name in self._used)
        given = {} if memory is None else {"encoder_outputs": BaseModelOutput(last_hidden_state=memory)}
        with ExitStack() as stack:
            stack.enter_context(self._differentiable())
            stack.enter_context(_substituted(self._body, lambda *_, **__: features))
            if queries is not None and self._selector is not None:
                stack.enter_context(_substituted(self._selector, lambda x: _ranks(x, queries)))
            for module, look in (watch or {}).items():
                stack.enter_context(_watched(module, look))
            for module, list_of in (record or {}).items():
                stack.enter_context(_recorded(module, list_of))
            if eager:
                stack.enter_context(eager_attention(self.model))
            said = self.model(pixel_values=pixels, return_dict=True, **given)
        return _Said(
            said.logits,
            said.pred_boxes,
            said.encoder_last_hidden_state if memory is None else memory,
            self._chosen(said) if queries is None else queries,
        )

    def _find_selector(self) -> nn.Module | None:
        """The module whose scores decide which cells of the memory become queries."""
        selector: nn.Module | None = getattr(self.model.model, "enc_score_head", None)
        if selector is None and getattr(self.model.config, "two_stage", False):
            selector = self.model.model.decoder.class_embed[-1]
        return selector

    def _chosen(self, said: Any) -> Tensor | None:
        """Which cells of the memory became queries: as the network itself chooses, from the same scores."""
        if self._selector is None:
            return None
        scores = said.enc_outputs_class
        best = scores[..., 0] if self.model.config.model_type == "deformable_detr" else scores.amax(-1)
        chosen: Tensor = best.topk(said.logits.shape[1], dim=1).indices
        return chosen

    # Memory

    def _sizes(self, stages: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """(h, w) of each level of the memory."""
        sizes = [(stages[name].shape[2], stages[name].shape[3]) for name in self._used]
        if self.kind.alone:
            return sizes[-1:]
        while not self.kind.maps and len(sizes) < self.model.config.num_feature_levels:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))  # a convolution of stride 2
        return sizes

    def _maps_of(self, memory: Any, stages: Mapping[str, Tensor]) -> list[Tensor]:
        """Lay the memory out as maps (B, d, h, w), finest first."""
        if self.kind.maps:
            return list(memory)
        sizes = self._sizes(stages)
        parts = memory.split([h * w for h, w in sizes], 1)
        return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]

    def _memory_of(self, maps: Sequence[Tensor]) -> Any:
        """The inverse of `_maps_of`."""
        if self.kind.maps:
            return list(maps)
        return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)

    def _probe(self) -> tuple[Tensor, dict[str, Tensor]]:
        """A grey picture (1, 3, side, side), as small as the queries allow, and its stages.

        Raises:
            ValueError: if there are more queries than cells in any picture that is tried.
        """
        config, wanted = self.model.config, 0
        if self._selector is not None:
            deformable = config.model_type == "deformable_detr"
            wanted = config.two_stage_num_proposals if deformable else config.num_queries
        side, cells = PROBE, 0
        while side <= MOST_PROBED:
            pixels = self.weight.new_zeros(1, 3, side, side)
            stages = self._climb(pixels)
            cells = sum(height * width for height, width in self._sizes(stages))
            if cells >= wanted:
                return pixels, stages
            side *= 2
        raise ValueError(
            f"queries: expected at most {cells}, the cells that a picture of {MOST_PROBED} x {MOST_PROBED} "
            f"has for them; got {wanted}"
        )

    def _find_layers(self) -> dict[str, Layer]:
        """Run a small grey picture through the network to see what its layers look like."""
        with torch.no_grad():
            pixels, stages = self._probe()
            side = pixels.shape[3]
            said = self._run(pixels, stages)
            count = len(said.memory) if self.kind.maps else len(self._sizes(stages))
            self._memory_names = ["memory"] if count == 1 else [f"memory{i + 1}" for i in range(count)]
            levels = self._maps_of(said.memory, stages)
        found = [
            Layer(name, "stage", stage.shape[1], side / stage.shape[3])
            for name, stage in reversed(stages.items())
        ]
        memory = [
            Layer(name, "memory", level.shape[1], side / level.shape[3])
            for name, level in zip(self._memory_names, levels, strict=True)
        ]
        # The last stage first: the default.
        return {layer.name: layer for layer in [found[0], *memory, *reversed(found[1:])]}

    # Candidates and detections

    def _decode(self, raw: Mapping[str, Tensor], frame: Frame) -> tuple[Tensor, Tensor]:
        """Final class scores (N, K), and boxes (N, 4) in the network frame, of raw outputs (N, width)."""
        logits = raw["logits"]
        scores = logits.softmax(-1)[:, :-1] if self.kind.softmax else logits.sigmoid()
        size = logits.new_tensor([frame.network_width, frame.network_height] * 2)
        return scores[:, self.first :], box_convert(raw["boxes"], "cxcywh", "xyxy") * size

    def _of_classes(self, logits: Tensor) -> Tensor:
        """The logits (N, K) of the classes that have names."""
        return logits[:, self.first : -1] if self.kind.softmax else logits[:, self.first :]

    def candidates(self, forward: Forward, image: int) -> Candidates:
        """See `WhiteBoxDetector.candidates`: the queries."""
        raw = {name: forward.extra[name][image] for name in ("logits", "boxes")}
        scores, boxes = self._decode(raw, forward.batch.frames[image])
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return Candidates(boxes, scores, groups)

    def contenders(self, candidates: Candidates, frame: Frame, settings: PostProcessing) -> Contenders:
        """See `WhiteBoxDetector.contenders`: a query's best class, or the best pairs of query and class."""
        if not self.kind.softmax:
            return contenders(candidates, frame, settings, group_limit=self.defaults.max_detections)
        scores = candidates.scores
        best = torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1).bool()
        alone = replace(candidates, scores=torch.where(best, scores, -1.0))
        return replace(contenders(alone, frame, settings), best_class_only=True)

    # What can be looked into

    def taps(
        self,
        forward: Forward,
        image: int,
        layers: Sequence[str],
        candidates: Tensor,
        labels: Tensor,
        *,
        exact: bool = False,
    ) -> QueryTaps:
        """See `WhiteBoxDetector.taps`; one way back for all layers."""
        del exact  # norms with statistics over a map are differentiated through in any case
        self.require_layers(forward, layers)
        frame = forward.batch.frames[image]
        raw = {name: forward.extra[name][image, candidates] for name in ("logits", "boxes")}

        def outputs(raw: Mapping[str, Tensor]) -> Outputs:
            scores, sides = self._decode(raw, frame)
            return Outputs(scores, sides, labels, self._of_classes(raw["logits"]))

        maps = {**forward.stages, **forward.levels}
        one = torch.zeros_like(candidates)  # every candidate sees the same, only map
        views = QueryViews(
            lambda copies: self._ascend(forward, image, layers, copies),
            candidates,
            raw,
            outputs,
            [*self.model.parameters(), *self.model.buffers()],
        )
        return QueryTaps(
            [
                QueryTap(views, name, maps[name][image], self._grids(forward, image, [name], one))
                for name in layers
            ]
        )

    @torch.enable_grad()
    def _ascend(self, forward: Forward, image: int, layers: Sequence[str], copies: int) -> Ascent:
        """Run the network from the lowest of some layers on, with the graph, for copies of one picture."""
        pixels = forward.batch.copies(image, copies).pixels
        own = _repeated(forward.stages, image, copies)
        queries = forward.extra["queries"]
        held = None if queries is None else queries[image : image + 1].expand(copies, -1)
        asked = [name for name in own if name in layers]
        if not asked:
            levels = _repeated(forward.levels, image, copies)
            levels = {name: v.clone().requires_grad_() for name, v in levels.items()}
            memory = self._memory_of(list(levels.values()))
            said = self._run(pixels, own, memory=memory, queries=held)
            return Ascent(said.raw, {name: Below(level) for name, level in levels.items()}, {})
        seen: list[Tensor] = []
        watch: dict[nn.Module, Callable[[Any], Any]] = {}
        if self.kind.maps:
            # One level of the memory is made of another: they must be told apart from what the decoder takes.
            watch[self.model.model.encoder] = _copied
        last = self._stage_names[-1]
        conv = self.model.model.input_projection if self.kind.alone else None
        if conv is not None and last in layers:
            watch[conv] = seen.append
        own |= self._climb(own[asked[0]].clone().requires_grad_(), asked[0])
        said = self._run(pixels, own, queries=held, watch=watch)
        below = {name: Below(own[name]) for name in asked}
        for position, name in enumerate(self._memory_names):
            below[name] = self._below_memory(said.memory, own, position)
        entries = {}
        if seen and conv is not None:
            values = torch.nn.functional.conv2d(own[last][:1].detach(), conv.weight)[0]
            entries[last] = Entry(Below(seen[0]), values)
        return Ascent(said.raw, below, entries)

    def _below_memory(self, memory: Any, stages: Mapping[str, Tensor], position: int) -> Below:
        if self.kind.maps:
            return Below(memory[position])
        return Below(memory, lambda gradient: self._maps_of(gradient, stages)[position])

    @torch.no_grad()
    def resume(self, forward: Forward, image: int, layer: str, maps: Sequence[Tensor]) -> Forward:
        """See `WhiteBoxDetector.resume`: from a stage, or from one level of the memory."""
        self.require_layers(forward, [layer])
        own = {**forward.stages, **forward.levels}[layer]
        if len(maps) != 1 or maps[0].shape[1:] != own.shape[1:]:
            raise ValueError(f"expected maps of the shape of layer {layer!r}")
        count = len(maps[0])
        batch = forward.batch.copies(image, count)
        stages, memory = _repeated(forward.stages, image, count), None
        if layer in stages:
            stages |= self._climb(maps[0], layer)
        else:
            levels = _repeated(forward.levels, image, count) | {layer: maps[0]}
            memory = self._memory_of(list(levels.values()))
        return self._forward(batch, stages, self._run(batch.pixels, stages, memory=memory), keep=False)

    def hold(self, forward: Forward, image: int, candidates: Tensor) -> dict[str, Tensor]:
        """See `WhiteBoxDetector.hold`: the cells of the memory that queries are taken from, if they are."""
        queries = forward.extra["queries"]
        return {"candidates": candidates} | ({} if queries is None else {"queries": queries[image]})

    def trace(self, batch: Batch, held: Mapping[str, Tensor]) -> Trace:
        """See `WhiteBoxDetector.trace`."""
        queries = held.get("queries")
        if queries is not None:
            queries = queries.expand(len(batch.frames), -1)
        with torch.enable_grad():
            pixels = batch.pixels.detach().requires_grad_()
            stages = self._climb(pixels)
            said = self._run(batch.pixels, stages, queries=queries)
        forward = self._forward(batch, {}, said, keep=False)

        def outputs(version: int, candidates: Tensor, labels: Tensor) -> Outputs:
            raw = {name: value[version, candidates] for name, value in said.raw.items()}
            scores, sides = self._decode(raw, batch.frames[version])
            return Outputs(scores, sides, labels, self._of_classes(raw["logits"]))

        return Trace(forward, pixels, (), outputs)

    # Attention

    def _blocks(self, part: str) -> list[nn.Module]:
        """The attention modules of the decoder, to the memory, or of the encoder, to itself."""
        network = self.model.model
        if part == "decoder":
            return [block.encoder_attn for block in network.decoder.layers]
        if not self.kind.maps:
            return [block.self_attn for block in network.encoder.layers]
        # A hybrid encoder: attention within some of the levels.
        several = len(network.encoder.encode_proj_layers) != 1
        return [] if several else [block.self_attn for block in network.encoder.aifi[0].layers]

    @torch.no_grad()
    def attention(self, forward: Forward, image: int, part: str, candidates: Tensor) -> Attention:
        """See `WhiteBoxDetector.attention`; sampled points are laid out on the finest level of the memory."""
        if part not in self.attends:
            raise NotImplementedError(f"expected one of {', '.join(self.attends)}; got {part!r}")
        self.require_layers(forward, [])
        blocks = self._blocks(part)
        level = 0
        if part == "encoder" and self.kind.maps:
            level = int(self.model.model.encoder.encode_proj_layers[0])
        name = self._memory_names[level]
        height, width = forward.levels[name].shape[2:]
        grids = self._grids(forward, image, [name], torch.zeros_like(candidates))
        rows = candidates
        if part == "encoder":
            rows = _middles(self.candidates(forward, image).boxes[candidates], grids, width)
        records: dict[nn.Module, list[tuple[dict[str, Any], Any]]] = {block: [] for block in blocks}
        queries = forward.extra["queries"]
        self._run(
            forward.batch.pixels[image : image + 1],
            {name: stage[image : image + 1] for name, stage in forward.stages.items()},
            queries=None if queries is None else queries[image : image + 1],
            eager=True,
            record=records,
        )
        maps = []
        for block, ((named, (_, weights)),) in records.items():
            if samples_points(block):
                maps.append(spread(*sampled_points(block, named, weights, rows), (height, width)))
            else:
                maps.append(weights[0, :, rows].transpose(0, 1).unflatten(2, (height, width)))
        return Attention(torch.stack(maps, 1), grids)

    # Inversion

    @property
    def backbone(self) -> nn.Module:
        """See `WhiteBoxDetector.backbone`."""
        body: nn.Module = self._body
        return body

    @torch.enable_grad()
    def stage_outputs(self, batch: Batch, regions: Tensor | None = None) -> list[StageOutputs]:
        """See `WhiteBoxDetector.stage_outputs`; a query's anchor is its own box."""
        del regions  # there are no proposals
        said = self._run(batch.pixels, self._climb(batch.pixels))
        raw = {name: value[0] for name, value in said.raw.items()}
        _, boxes = self._decode(raw, batch.frames[0])
        logits = self._of_classes(raw["logits"])
        if self.kind.softmax:  # what no label names is background, the unused first class with it
            rest = torch.cat([raw["logits"][:, : self.first], raw["logits"][:, -1:]], 1)
            logits = torch.cat([rest.logsumexp(1, keepdim=True), logits], 1)
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return [StageOutputs("queries", logits, boxes, boxes.detach(), groups, softmax=self.kind.softmax)]


def _repeated(maps: Mapping[str, Tensor], image: int, count: int) -> dict[str, Tensor]:
    """Maps (B, C, H, W) of one picture of a batch, so many times: (count, C, H, W), sharing memory."""
    return {name: one[image : image + 1].expand(count, -1, -1, -1) for name, one in maps.items()}


@contextmanager
def _substituted(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module answer with something else, in the block."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def written_out(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    """Return a batch norm's function in evaluation, as a product and a sum."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    return lambda x: x * scale[:, None, None] + shift[:, None, None]


def _copied(made: Any) -> Any:
    """An encoder's output, its maps copied."""
    made.last_hidden_state = [level.clone() for level in made.last_hidden_state]
    return made


@contextmanager
def _watched(module: nn.Module, look: Callable[[Any], Any]) -> Iterator[None]:
    """Show somebody what a module returns, in the block; what they return, if anything, replaces it."""
    handle = module.register_forward_hook(lambda _module, _given, made: look(made))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _recorded(module: nn.Module, record: list[tuple[dict[str, Any], Any]]) -> Iterator[None]:
    """Put what a module is given by name, and what it returns, into a list, in the block."""
    handle = module.register_forward_hook(
        lambda _module, _given, named, made: record.append((named, made)), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Have attention written out in products of matrices, in the block: fused, it keeps no weights."""
    config = model.config
    own = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = own


def _middles(boxes: Tensor, grids: Grids, width: int) -> Tensor:
    """The cells, counted row by row, that the middles of boxes (n, 4) lie in: int64 (n,)."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = ((middles - grids.offsets) / grids.cells).floor().long().clamp(min=0)
    cells = torch.minimum(cells, grids.sizes - 1)
    return cells[:, 1] * width + cells[:, 0]


def _ranks(x: Tensor, queries: Tensor) -> Tensor:
    """Scores of cells (B, N, d) → (B, N, 1) by which the given ones (B, Q) are chosen, in their order."""
    ranks = torch.arange(queries.shape[1], 0, -1, device=x.device, dtype=x.dtype)
    scores = x.new_zeros(x.shape[:2]).scatter(1, queries, ranks.expand(len(x), -1))
    return scores[..., None]
