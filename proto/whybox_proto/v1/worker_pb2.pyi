from whybox_proto.v1 import explainer_pb2 as _explainer_pb2
from whybox_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Plan(_message.Message):
    __slots__ = ("answer", "samples", "round_samples", "groups", "state")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ROUND_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    answer: _explainer_pb2.ExplainResponse
    samples: int
    round_samples: int
    groups: int
    state: bytes
    def __init__(self, answer: _Optional[_Union[_explainer_pb2.ExplainResponse, _Mapping]] = ..., samples: _Optional[int] = ..., round_samples: _Optional[int] = ..., groups: _Optional[int] = ..., state: _Optional[bytes] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("explain", "state", "first", "count", "group", "groups")
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    explain: _explainer_pb2.ExplainRequest
    state: bytes
    first: int
    count: int
    group: int
    groups: int
    def __init__(self, explain: _Optional[_Union[_explainer_pb2.ExplainRequest, _Mapping]] = ..., state: _Optional[bytes] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., group: _Optional[int] = ..., groups: _Optional[int] = ...) -> None: ...

class MapSum(_message.Message):
    __slots__ = ("heat_map", "values", "weight", "weights")
    HEAT_MAP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    heat_map: _types_pb2.HeatMap
    values: bytes
    weight: float
    weights: bytes
    def __init__(self, heat_map: _Optional[_Union[_types_pb2.HeatMap, _Mapping]] = ..., values: _Optional[bytes] = ..., weight: _Optional[float] = ..., weights: _Optional[bytes] = ...) -> None: ...

class Sums(_message.Message):
    __slots__ = ("sums",)
    SUMS_FIELD_NUMBER: _ClassVar[int]
    sums: _containers.RepeatedCompositeFieldContainer[MapSum]
    def __init__(self, sums: _Optional[_Iterable[_Union[MapSum, _Mapping]]] = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("model", "image", "detection", "heat_map", "truth", "measures", "seed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    HEAT_MAP_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model: str
    image: bytes
    detection: _types_pb2.Detection
    heat_map: _types_pb2.HeatMap
    truth: _types_pb2.Layout
    measures: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    def __init__(self, model: _Optional[str] = ..., image: _Optional[bytes] = ..., detection: _Optional[_Union[_types_pb2.Detection, _Mapping]] = ..., heat_map: _Optional[_Union[_types_pb2.HeatMap, _Mapping]] = ..., truth: _Optional[_Union[_types_pb2.Layout, _Mapping]] = ..., measures: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ...) -> None: ...

class AdvanceRequest(_message.Message):
    __slots__ = ("inversion", "state", "seconds")
    INVERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    inversion: _explainer_pb2.CreateInversionRequest
    state: bytes
    seconds: float
    def __init__(self, inversion: _Optional[_Union[_explainer_pb2.CreateInversionRequest, _Mapping]] = ..., state: _Optional[bytes] = ..., seconds: _Optional[float] = ...) -> None: ...

class Advance(_message.Message):
    __slots__ = ("state", "progress", "picture", "result")
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    progress: _explainer_pb2.InversionProgress
    picture: bytes
    result: _explainer_pb2.InversionResult
    def __init__(self, state: _Optional[bytes] = ..., progress: _Optional[_Union[_explainer_pb2.InversionProgress, _Mapping]] = ..., picture: _Optional[bytes] = ..., result: _Optional[_Union[_explainer_pb2.InversionResult, _Mapping]] = ...) -> None: ...

class WorkerRequest(_message.Message):
    __slots__ = ("describe", "detect", "explain", "plan", "sample", "measure", "advance", "request_id", "deadline", "call_id", "traceparent")
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    DETECT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    ADVANCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    describe: DescribeRequest
    detect: _explainer_pb2.DetectRequest
    explain: _explainer_pb2.ExplainRequest
    plan: _explainer_pb2.ExplainRequest
    sample: SampleRequest
    measure: MeasureRequest
    advance: AdvanceRequest
    request_id: str
    deadline: float
    call_id: str
    traceparent: str
    def __init__(self, describe: _Optional[_Union[DescribeRequest, _Mapping]] = ..., detect: _Optional[_Union[_explainer_pb2.DetectRequest, _Mapping]] = ..., explain: _Optional[_Union[_explainer_pb2.ExplainRequest, _Mapping]] = ..., plan: _Optional[_Union[_explainer_pb2.ExplainRequest, _Mapping]] = ..., sample: _Optional[_Union[SampleRequest, _Mapping]] = ..., measure: _Optional[_Union[MeasureRequest, _Mapping]] = ..., advance: _Optional[_Union[AdvanceRequest, _Mapping]] = ..., request_id: _Optional[str] = ..., deadline: _Optional[float] = ..., call_id: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class WorkerReply(_message.Message):
    __slots__ = ("error", "model", "detect", "explain", "plan", "sample", "measure", "advance", "seconds")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETECT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    ADVANCE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    error: _explainer_pb2.Error
    model: _types_pb2.Model
    detect: _explainer_pb2.DetectResponse
    explain: _explainer_pb2.ExplainResponse
    plan: Plan
    sample: Sums
    measure: _explainer_pb2.Evaluation
    advance: Advance
    seconds: float
    def __init__(self, error: _Optional[_Union[_explainer_pb2.Error, _Mapping]] = ..., model: _Optional[_Union[_types_pb2.Model, _Mapping]] = ..., detect: _Optional[_Union[_explainer_pb2.DetectResponse, _Mapping]] = ..., explain: _Optional[_Union[_explainer_pb2.ExplainResponse, _Mapping]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., sample: _Optional[_Union[Sums, _Mapping]] = ..., measure: _Optional[_Union[_explainer_pb2.Evaluation, _Mapping]] = ..., advance: _Optional[_Union[Advance, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...
