"""Pickles of arrays: what NumPy writes is read, and nothing else is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whybox.detectors.array_pickle import ArrayPickleError, read_arrays

ARRAYS: dict[str, Any] = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(12).reshape(3, 4).T,
    "half": np.linspace(0, 1, 5, dtype=np.float16),
    "bytes": np.arange(7, dtype=np.uint8),
    "bool": np.array([True, False]),
    "big endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3), np.float32),
    "no dimensions": np.array(5),
    "scalar": np.float32(2.5),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back(protocol: int, tmp_path: Path) -> None:
    """By every protocol, among the numbers and text around them."""
    around = {"__author__": "somebody", 3: [1, 2.5, None, True, b"bytes", ("a", "b")]}
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"model": OrderedDict(ARRAYS), **around}, protocol=protocol))
    read = read_arrays(path)
    assert {key: value for key, value in read.items() if key != "model"} == around
    for name, expected in ARRAYS.items():
        assert np.array_equal(read["model"][name], expected), name
        assert read["model"][name].dtype == np.asarray(expected).dtype, name


def test_text_of_python_2_is_latin_1(tmp_path: Path) -> None:
    """Arrays as NumPy under Python 2 wrote them: their bytes are text."""
    data = np.array([1.5, -2.0], "<f4").tobytes().decode("latin1")
    state = b"(I1\n(I2\ntp2\ncnumpy\ndtype\n(S'f4'\nI0\nI1\ntRp3\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    text = "S" + repr(data) + "\n"
    old = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR" + state
    path = tmp_path / "old.pkl"
    path.write_bytes(old + text.encode("latin1") + b"tb.")
    assert read_arrays(path).tolist() == [1.5, -2.0]


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Reduced(os.system, "true"), r"it names posix\.system"),
        (Reduced(eval, "1"), r"it names builtins\.eval"),
        (Reduced(np.load, "x"), r"it names numpy\.load"),
        (Reduced(getattr, "x", "join"), r"it names builtins\.getattr"),
        (Path("x"), r"it names pathlib"),
        (np.array([object()]), "an array has the dtype 'O8'"),
        (np.array(["text"]), "an array has the dtype 'U4'"),
        (np.zeros(2, [("a", "f4")]), "an array has"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "it names numpy"),
        ({1.5: 2}, "expected names as keys"),
        ([{1, 2}], "it holds a set"),
    ],
)
def test_other_things_are_refused(value: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(ArrayPickleError, match=words):
        read_arrays(path)


def _array(shape: Any, data: bytes, dtype: str = "f4", state: Any = ()) -> Any:
    """An array as NumPy pickles it, with a shape and bytes of one's own."""

    class Stated(Reduced):
        def __reduce__(self) -> Any:
            return (*self.call, (1, shape, np.dtype(dtype), False, data, *state))

    return Stated(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (_array((1000, 1000), b"1234"), r"an array of shape \(1000, 1000\) has 4 bytes"),
        (_array((-1,), b"1234"), r"an array has the shape \(-1,\)"),
        (_array((True,), b"1234"), "an array has the shape"),
        (_array((1,), b"1234", state=(1,)), "it is damaged"),
        (Reduced(np.zeros(0).__reduce__()[0], OrderedDict, (0,), b"b"), "another class than NumPy's"),
        (Reduced(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b"), "an array has no state"),
    ],
)
def test_arrays_must_be_what_they_say(value: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ArrayPickleError, match=words):
        read_arrays(path)


def test_lists_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(endless))
    with pytest.raises(ArrayPickleError, match="it is damaged"):
        read_arrays(path)


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps(ARRAYS)[:-40]])
def test_damaged_files_are_told(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    with pytest.raises(ArrayPickleError, match="it is damaged"):
        read_arrays(path)
