from whybox_proto.v1 import explainer_pb2 as _explainer_pb2
from whybox_proto.v1 import types_pb2 as _types_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerRequest(_message.Message):
    __slots__ = ("describe", "detect", "explain", "request_id", "deadline", "call_id", "traceparent")
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    DETECT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    describe: DescribeRequest
    detect: _explainer_pb2.DetectRequest
    explain: _explainer_pb2.ExplainRequest
    request_id: str
    deadline: float
    call_id: str
    traceparent: str
    def __init__(self, describe: _Optional[_Union[DescribeRequest, _Mapping]] = ..., detect: _Optional[_Union[_explainer_pb2.DetectRequest, _Mapping]] = ..., explain: _Optional[_Union[_explainer_pb2.ExplainRequest, _Mapping]] = ..., request_id: _Optional[str] = ..., deadline: _Optional[float] = ..., call_id: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class WorkerReply(_message.Message):
    __slots__ = ("error", "model", "detect", "explain", "seconds")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETECT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    error: _explainer_pb2.Error
    model: _types_pb2.Model
    detect: _explainer_pb2.DetectResponse
    explain: _explainer_pb2.ExplainResponse
    seconds: float
    def __init__(self, error: _Optional[_Union[_explainer_pb2.Error, _Mapping]] = ..., model: _Optional[_Union[_types_pb2.Model, _Mapping]] = ..., detect: _Optional[_Union[_explainer_pb2.DetectResponse, _Mapping]] = ..., explain: _Optional[_Union[_explainer_pb2.ExplainResponse, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...
