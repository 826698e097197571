from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageSize(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Select(_message.Message):
    __slots__ = ("score_threshold", "max_detections", "labels", "indices", "box", "expected")
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    score_threshold: float
    max_detections: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    indices: _containers.RepeatedScalarFieldContainer[int]
    box: _containers.RepeatedScalarFieldContainer[float]
    expected: Expected
    def __init__(self, score_threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., indices: _Optional[_Iterable[int]] = ..., box: _Optional[_Iterable[float]] = ..., expected: _Optional[_Union[Expected, _Mapping]] = ...) -> None: ...

class Expected(_message.Message):
    __slots__ = ("box", "label")
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    box: _containers.RepeatedScalarFieldContainer[float]
    label: str
    def __init__(self, box: _Optional[_Iterable[float]] = ..., label: _Optional[str] = ...) -> None: ...

class Nms(_message.Message):
    __slots__ = ("kind", "iou_threshold", "corr_high", "corr_low", "sigma", "final_threshold", "explain_suppressed")
    KIND_FIELD_NUMBER: _ClassVar[int]
    IOU_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CORR_HIGH_FIELD_NUMBER: _ClassVar[int]
    CORR_LOW_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    FINAL_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    iou_threshold: float
    corr_high: float
    corr_low: float
    sigma: float
    final_threshold: float
    explain_suppressed: bool
    def __init__(self, kind: _Optional[str] = ..., iou_threshold: _Optional[float] = ..., corr_high: _Optional[float] = ..., corr_low: _Optional[float] = ..., sigma: _Optional[float] = ..., final_threshold: _Optional[float] = ..., explain_suppressed: bool = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("seconds", "samples")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    samples: int
    def __init__(self, seconds: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("size", "encoding", "max_side")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    size: str
    encoding: str
    max_side: int
    def __init__(self, size: _Optional[str] = ..., encoding: _Optional[str] = ..., max_side: _Optional[int] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("index", "box", "label", "label_id", "score")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    index: int
    box: _containers.RepeatedScalarFieldContainer[float]
    label: str
    label_id: int
    score: float
    def __init__(self, index: _Optional[int] = ..., box: _Optional[_Iterable[float]] = ..., label: _Optional[str] = ..., label_id: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class SuppressedDetection(_message.Message):
    __slots__ = ("box", "label", "score", "by_index", "iou", "correlation", "rule")
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BY_INDEX_FIELD_NUMBER: _ClassVar[int]
    IOU_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    box: _containers.RepeatedScalarFieldContainer[float]
    label: str
    score: float
    by_index: int
    iou: float
    correlation: float
    rule: str
    def __init__(self, box: _Optional[_Iterable[float]] = ..., label: _Optional[str] = ..., score: _Optional[float] = ..., by_index: _Optional[int] = ..., iou: _Optional[float] = ..., correlation: _Optional[float] = ..., rule: _Optional[str] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class HeatMap(_message.Message):
    __slots__ = ("detection_index", "target", "method", "layer", "region", "width", "height", "signed", "encoding", "data", "min_value", "max_value", "samples", "standard_error", "faithfulness")
    class FaithfulnessEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DETECTION_INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SIGNED_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MIN_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    FAITHFULNESS_FIELD_NUMBER: _ClassVar[int]
    detection_index: int
    target: str
    method: str
    layer: str
    region: _containers.RepeatedScalarFieldContainer[float]
    width: int
    height: int
    signed: bool
    encoding: str
    data: bytes
    min_value: float
    max_value: float
    samples: int
    standard_error: float
    faithfulness: _containers.ScalarMap[str, float]
    def __init__(self, detection_index: _Optional[int] = ..., target: _Optional[str] = ..., method: _Optional[str] = ..., layer: _Optional[str] = ..., region: _Optional[_Iterable[float]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., signed: bool = ..., encoding: _Optional[str] = ..., data: _Optional[bytes] = ..., min_value: _Optional[float] = ..., max_value: _Optional[float] = ..., samples: _Optional[int] = ..., standard_error: _Optional[float] = ..., faithfulness: _Optional[_Mapping[str, float]] = ...) -> None: ...

class WhyNot(_message.Message):
    __slots__ = ("candidate", "reason", "by_index", "by_label", "by_score", "score_threshold", "expected_iou", "suppressed", "heat_maps")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_INDEX_FIELD_NUMBER: _ClassVar[int]
    BY_LABEL_FIELD_NUMBER: _ClassVar[int]
    BY_SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_IOU_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    HEAT_MAPS_FIELD_NUMBER: _ClassVar[int]
    candidate: Detection
    reason: str
    by_index: int
    by_label: str
    by_score: float
    score_threshold: float
    expected_iou: float
    suppressed: SuppressedDetection
    heat_maps: _containers.RepeatedCompositeFieldContainer[HeatMap]
    def __init__(self, candidate: _Optional[_Union[Detection, _Mapping]] = ..., reason: _Optional[str] = ..., by_index: _Optional[int] = ..., by_label: _Optional[str] = ..., by_score: _Optional[float] = ..., score_threshold: _Optional[float] = ..., expected_iou: _Optional[float] = ..., suppressed: _Optional[_Union[SuppressedDetection, _Mapping]] = ..., heat_maps: _Optional[_Iterable[_Union[HeatMap, _Mapping]]] = ...) -> None: ...

class Parameter(_message.Message):
    __slots__ = ("name", "type", "default_value", "minimum", "maximum", "choices", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    default_value: _struct_pb2.Value
    minimum: float
    maximum: float
    choices: _containers.RepeatedScalarFieldContainer[str]
    description: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., default_value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., choices: _Optional[_Iterable[str]] = ..., description: _Optional[str] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("name", "kind", "channels", "stride")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    channels: int
    stride: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., channels: _Optional[int] = ..., stride: _Optional[float] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("name", "description", "params", "targets", "layers", "default_layer", "sampling", "combines_layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LAYER_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    COMBINES_LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    params: _containers.RepeatedCompositeFieldContainer[Parameter]
    targets: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[str]
    default_layer: str
    sampling: bool
    combines_layers: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., params: _Optional[_Iterable[_Union[Parameter, _Mapping]]] = ..., targets: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[str]] = ..., default_layer: _Optional[str] = ..., sampling: bool = ..., combines_layers: bool = ...) -> None: ...

class Measure(_message.Message):
    __slots__ = ("name", "protocol", "better", "needs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    BETTER_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    protocol: str
    better: str
    needs: str
    def __init__(self, name: _Optional[str] = ..., protocol: _Optional[str] = ..., better: _Optional[str] = ..., needs: _Optional[str] = ...) -> None: ...

class SpatialShift(_message.Message):
    __slots__ = ("layer", "median", "low", "high", "noise", "limit", "above", "x", "y", "inward", "room", "measured_on", "misleads")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    INWARD_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    MEASURED_ON_FIELD_NUMBER: _ClassVar[int]
    MISLEADS_FIELD_NUMBER: _ClassVar[int]
    layer: str
    median: float
    low: float
    high: float
    noise: float
    limit: float
    above: float
    x: float
    y: float
    inward: float
    room: float
    measured_on: str
    misleads: bool
    def __init__(self, layer: _Optional[str] = ..., median: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., noise: _Optional[float] = ..., limit: _Optional[float] = ..., above: _Optional[float] = ..., x: _Optional[float] = ..., y: _Optional[float] = ..., inward: _Optional[float] = ..., room: _Optional[float] = ..., measured_on: _Optional[str] = ..., misleads: bool = ...) -> None: ...

class InputLimits(_message.Message):
    __slots__ = ("max_bytes", "max_pixels", "max_side", "formats", "max_aspect")
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    MAX_ASPECT_FIELD_NUMBER: _ClassVar[int]
    max_bytes: int
    max_pixels: int
    max_side: int
    formats: _containers.RepeatedScalarFieldContainer[str]
    max_aspect: int
    def __init__(self, max_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_side: _Optional[int] = ..., formats: _Optional[_Iterable[str]] = ..., max_aspect: _Optional[int] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("id", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: str
    def __init__(self, id: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("ready", "workers", "queue_remaining")
    READY_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_REMAINING_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    queue_remaining: int
    def __init__(self, ready: bool = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., queue_remaining: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "description", "family", "architecture", "labels", "input", "score_threshold", "methods", "layers", "nms", "default_nms", "ready", "state", "measures", "spatial_shifts", "inversion", "weights_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NMS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NMS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    SPATIAL_SHIFTS_FIELD_NUMBER: _ClassVar[int]
    INVERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    description: str
    family: str
    architecture: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    input: InputLimits
    score_threshold: float
    methods: _containers.RepeatedCompositeFieldContainer[Method]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    nms: _containers.RepeatedCompositeFieldContainer[Nms]
    default_nms: str
    ready: bool
    state: WorkerState
    measures: _containers.RepeatedCompositeFieldContainer[Measure]
    spatial_shifts: _containers.RepeatedCompositeFieldContainer[SpatialShift]
    inversion: Invertible
    weights_sha256: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., description: _Optional[str] = ..., family: _Optional[str] = ..., architecture: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., input: _Optional[_Union[InputLimits, _Mapping]] = ..., score_threshold: _Optional[float] = ..., methods: _Optional[_Iterable[_Union[Method, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., nms: _Optional[_Iterable[_Union[Nms, _Mapping]]] = ..., default_nms: _Optional[str] = ..., ready: bool = ..., state: _Optional[_Union[WorkerState, _Mapping]] = ..., measures: _Optional[_Iterable[_Union[Measure, _Mapping]]] = ..., spatial_shifts: _Optional[_Iterable[_Union[SpatialShift, _Mapping]]] = ..., inversion: _Optional[_Union[Invertible, _Mapping]] = ..., weights_sha256: _Optional[str] = ...) -> None: ...

class Preset(_message.Message):
    __slots__ = ("name", "description", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Invertible(_message.Message):
    __slots__ = ("params", "presets", "max_pixels", "min_side", "max_objects", "masks")
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    PRESETS_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MIN_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    params: _containers.RepeatedCompositeFieldContainer[Parameter]
    presets: _containers.RepeatedCompositeFieldContainer[Preset]
    max_pixels: int
    min_side: int
    max_objects: int
    masks: bool
    def __init__(self, params: _Optional[_Iterable[_Union[Parameter, _Mapping]]] = ..., presets: _Optional[_Iterable[_Union[Preset, _Mapping]]] = ..., max_pixels: _Optional[int] = ..., min_side: _Optional[int] = ..., max_objects: _Optional[int] = ..., masks: bool = ...) -> None: ...

class LayoutObject(_message.Message):
    __slots__ = ("label", "box", "mask", "evidence")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    label: str
    box: _containers.RepeatedScalarFieldContainer[float]
    mask: str
    evidence: str
    def __init__(self, label: _Optional[str] = ..., box: _Optional[_Iterable[float]] = ..., mask: _Optional[str] = ..., evidence: _Optional[str] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("width", "height", "objects")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    objects: _containers.RepeatedCompositeFieldContainer[LayoutObject]
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., objects: _Optional[_Iterable[_Union[LayoutObject, _Mapping]]] = ...) -> None: ...
