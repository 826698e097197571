import datetime

from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from whybox_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_types_pb2.Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[_types_pb2.Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "model_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class DetectRequest(_message.Message):
    __slots__ = ("model", "model_version", "image", "select", "nms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    NMS_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    image: bytes
    select: _types_pb2.Select
    nms: _types_pb2.Nms
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., image: _Optional[bytes] = ..., select: _Optional[_Union[_types_pb2.Select, _Mapping]] = ..., nms: _Optional[_Union[_types_pb2.Nms, _Mapping]] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("model", "model_version", "image", "detections", "suppressed", "warnings", "stages", "why_not")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    WHY_NOT_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    image: _types_pb2.ImageSize
    detections: _containers.RepeatedCompositeFieldContainer[_types_pb2.Detection]
    suppressed: _containers.RepeatedCompositeFieldContainer[_types_pb2.SuppressedDetection]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    stages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stage]
    why_not: _types_pb2.WhyNot
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., image: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ..., detections: _Optional[_Iterable[_Union[_types_pb2.Detection, _Mapping]]] = ..., suppressed: _Optional[_Iterable[_Union[_types_pb2.SuppressedDetection, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., stages: _Optional[_Iterable[_Union[_types_pb2.Stage, _Mapping]]] = ..., why_not: _Optional[_Union[_types_pb2.WhyNot, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model", "model_version", "image", "select", "nms", "method", "targets", "layer", "params", "budget", "seed", "evaluate", "output")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    NMS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    image: bytes
    select: _types_pb2.Select
    nms: _types_pb2.Nms
    method: str
    targets: _containers.RepeatedScalarFieldContainer[str]
    layer: str
    params: _struct_pb2.Struct
    budget: _types_pb2.Budget
    seed: int
    evaluate: bool
    output: _types_pb2.Output
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., image: _Optional[bytes] = ..., select: _Optional[_Union[_types_pb2.Select, _Mapping]] = ..., nms: _Optional[_Union[_types_pb2.Nms, _Mapping]] = ..., method: _Optional[str] = ..., targets: _Optional[_Iterable[str]] = ..., layer: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., budget: _Optional[_Union[_types_pb2.Budget, _Mapping]] = ..., seed: _Optional[int] = ..., evaluate: bool = ..., output: _Optional[_Union[_types_pb2.Output, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("model", "model_version", "image", "detections", "suppressed", "warnings", "stages", "heat_maps", "why_not", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    HEAT_MAPS_FIELD_NUMBER: _ClassVar[int]
    WHY_NOT_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    image: _types_pb2.ImageSize
    detections: _containers.RepeatedCompositeFieldContainer[_types_pb2.Detection]
    suppressed: _containers.RepeatedCompositeFieldContainer[_types_pb2.SuppressedDetection]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    stages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stage]
    heat_maps: _containers.RepeatedCompositeFieldContainer[_types_pb2.HeatMap]
    why_not: _types_pb2.WhyNot
    partial: bool
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., image: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ..., detections: _Optional[_Iterable[_Union[_types_pb2.Detection, _Mapping]]] = ..., suppressed: _Optional[_Iterable[_Union[_types_pb2.SuppressedDetection, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., stages: _Optional[_Iterable[_Union[_types_pb2.Stage, _Mapping]]] = ..., heat_maps: _Optional[_Iterable[_Union[_types_pb2.HeatMap, _Mapping]]] = ..., why_not: _Optional[_Union[_types_pb2.WhyNot, _Mapping]] = ..., partial: bool = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("explain", "truth", "measures")
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    explain: ExplainRequest
    truth: _types_pb2.Layout
    measures: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, explain: _Optional[_Union[ExplainRequest, _Mapping]] = ..., truth: _Optional[_Union[_types_pb2.Layout, _Mapping]] = ..., measures: _Optional[_Iterable[str]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("detection_index", "target", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DETECTION_INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    detection_index: int
    target: str
    values: _containers.ScalarMap[str, float]
    def __init__(self, detection_index: _Optional[int] = ..., target: _Optional[str] = ..., values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("explanation", "evaluations")
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    explanation: ExplainResponse
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    def __init__(self, explanation: _Optional[_Union[ExplainResponse, _Mapping]] = ..., evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ...) -> None: ...

class CreateInversionRequest(_message.Message):
    __slots__ = ("model", "layout", "params", "seed", "idempotency_key", "image", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    layout: _types_pb2.Layout
    params: _struct_pb2.Struct
    seed: int
    idempotency_key: str
    image: bytes
    priority: int
    def __init__(self, model: _Optional[str] = ..., layout: _Optional[_Union[_types_pb2.Layout, _Mapping]] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seed: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., image: _Optional[bytes] = ..., priority: _Optional[int] = ...) -> None: ...

class GetInversionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListInversionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "state")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    state: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class ListInversionsResponse(_message.Message):
    __slots__ = ("inversions", "next_page_token")
    INVERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    inversions: _containers.RepeatedCompositeFieldContainer[Inversion]
    next_page_token: str
    def __init__(self, inversions: _Optional[_Iterable[_Union[Inversion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelInversionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteInversionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchInversionRequest(_message.Message):
    __slots__ = ("name", "last_event_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    last_event_id: str
    def __init__(self, name: _Optional[str] = ..., last_event_id: _Optional[str] = ...) -> None: ...

class InversionProgress(_message.Message):
    __slots__ = ("iteration", "iterations", "losses", "found")
    class LossesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    iteration: int
    iterations: int
    losses: _containers.ScalarMap[str, float]
    found: int
    def __init__(self, iteration: _Optional[int] = ..., iterations: _Optional[int] = ..., losses: _Optional[_Mapping[str, float]] = ..., found: _Optional[int] = ...) -> None: ...

class LayoutMatch(_message.Message):
    __slots__ = ("mean_iou", "recall", "ap", "ap50", "unmatched")
    MEAN_IOU_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    AP_FIELD_NUMBER: _ClassVar[int]
    AP50_FIELD_NUMBER: _ClassVar[int]
    UNMATCHED_FIELD_NUMBER: _ClassVar[int]
    mean_iou: float
    recall: float
    ap: float
    ap50: float
    unmatched: int
    def __init__(self, mean_iou: _Optional[float] = ..., recall: _Optional[float] = ..., ap: _Optional[float] = ..., ap50: _Optional[float] = ..., unmatched: _Optional[int] = ...) -> None: ...

class LossCurve(_message.Message):
    __slots__ = ("name", "iterations", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    iterations: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., iterations: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class InversionResult(_message.Message):
    __slots__ = ("detections", "match", "losses", "params")
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    detections: _containers.RepeatedCompositeFieldContainer[_types_pb2.Detection]
    match: LayoutMatch
    losses: _containers.RepeatedCompositeFieldContainer[LossCurve]
    params: _struct_pb2.Struct
    def __init__(self, detections: _Optional[_Iterable[_Union[_types_pb2.Detection, _Mapping]]] = ..., match: _Optional[_Union[LayoutMatch, _Mapping]] = ..., losses: _Optional[_Iterable[_Union[LossCurve, _Mapping]]] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Inversion(_message.Message):
    __slots__ = ("name", "state", "progress", "request", "result", "error", "create_time", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    progress: InversionProgress
    request: CreateInversionRequest
    result: InversionResult
    error: Error
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., progress: _Optional[_Union[InversionProgress, _Mapping]] = ..., request: _Optional[_Union[CreateInversionRequest, _Mapping]] = ..., result: _Optional[_Union[InversionResult, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class InversionEvent(_message.Message):
    __slots__ = ("id", "inversion", "preview")
    ID_FIELD_NUMBER: _ClassVar[int]
    INVERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    id: str
    inversion: Inversion
    preview: bytes
    def __init__(self, id: _Optional[str] = ..., inversion: _Optional[_Union[Inversion, _Mapping]] = ..., preview: _Optional[bytes] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("type", "message", "field", "expected", "got", "request_id", "retry_after_seconds")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    GOT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    field: str
    expected: str
    got: str
    request_id: str
    retry_after_seconds: float
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., expected: _Optional[str] = ..., got: _Optional[str] = ..., request_id: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...
