"""Reads pickles of NumPy arrays, as Detectron's and detectron2's model zoos have them, and nothing else.

A pickle is a program that calls what it names. Here it can name only what NumPy writes for its arrays, and
gets stand-ins for that: none of NumPy's own functions run before shape, dtype and bytes of an array have been
checked against each other. Text of Python 2 is read as Latin-1.
"""

from __future__ import annotations

import codecs
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = "biuf"
"""Of the arrays' dtypes: booleans, integers and floats."""


class ArrayPickleError(ValueError):
    """A pickle that is damaged, or holds anything but arrays, numbers and text: what it is."""


def read_arrays(path: Path) -> Any:
    """Read a pickle.

    Returns:
        Mappings, lists and tuples of NumPy arrays, numbers, text, bytes and None.

    Raises:
        ArrayPickleError: for anything else.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _plain(_ArrayUnpickler(file, encoding="latin1").load())
        except ArrayPickleError:
            raise
        # Damaged pickles raise whatever their instructions run into.
        except Exception as error:
            raise ArrayPickleError(f"it is damaged: {type(error).__name__}: {error}") from error


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: Any, *_flags: Any) -> None:
        if isinstance(name, bytes):
            name = name.decode("latin1")
        if not isinstance(name, str) or len(name) > 8:
            raise ArrayPickleError("an array has no plain dtype")
        try:
            self.dtype = np.dtype(name)
        except TypeError as error:
            raise ArrayPickleError(f"an array has the dtype {name!r}") from error
        if self.dtype.kind not in _KINDS:
            raise ArrayPickleError(f"an array has the dtype {name!r}; expected numbers")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if isinstance(order, bytes):
            order = order.decode("latin1")
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise ArrayPickleError("an array has no plain dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for `numpy.ndarray`."""

    def __init__(self, value: NDArray[Any] | None = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        self.value = _array(data, dtype, shape, "F" if by_columns else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Make an array of its bytes."""
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise ArrayPickleError("an array is not made of numbers")
    if order not in ("C", "F") or not (
        isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ArrayPickleError(f"an array has the shape {shape!r}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ArrayPickleError(f"an array of shape {shape} has {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(kind: Any, *_shape: Any) -> _Array:
    if kind is not _Array:
        raise ArrayPickleError("an array is of another class than NumPy's")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(_array(data, dtype, shape, order))


def _scalar(dtype: Any, data: Any) -> _Array:
    return _Array(_array(data, dtype, (), "C"))


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ArrayPickleError(f"it calls codecs.encode with {encoding!r}")
    return codecs.encode(text, "latin1")


def _no_bytes() -> bytes:
    """No bytes at all, as Python 3 writes them for Python 2."""
    return b""


_NUMPY: dict[str, Callable[..., Any]] = {
    "ndarray": _Array,
    "dtype": _Dtype,
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
"""Within ``numpy``, its ``core`` left out."""

_OTHERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" or module.startswith(("numpy.core", "numpy._core")):
            found = _NUMPY.get(".".join([*module.split(".")[2:], name]))
        else:
            found = _OTHERS.get((module, name))
        if found is not None:
            return found
        raise ArrayPickleError(f"it names {module}.{name}; only arrays, numbers and text are read")

    def persistent_load(self, _pid: Any) -> Any:
        raise ArrayPickleError("it refers to objects outside of it")


def _plain(value: Any) -> Any:
    """Put arrays where their stand-ins are."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ArrayPickleError("an array has no state")
        return value.value
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise ArrayPickleError("expected names as keys")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    raise ArrayPickleError(f"it holds a {type(value).__name__}; only arrays, numbers and text are read")
