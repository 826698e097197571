"""Computes the arithmetic that detectron2's YAML files have: the zoo's anchor sizes are written so."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

MAX_LENGTH = 1000
"""Of an expression, in characters."""

MAX_STEPS = 10_000
"""Of an expression: numbers, lists and operations, those of a list that is made of a list each time."""

LARGEST = 1e9
"""Of the numbers that an expression may have to do with."""

_LARGEST_POWER = 64

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def compute(text: object) -> Any:
    """Compute an expression of Python: numbers, lists of them, and lists made of lists.

    Raises:
        ValueError: for anything else, or what would take more than `MAX_STEPS`.
    """
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ValueError("expected one line of arithmetic")
    try:
        return _Expression().value(ast.parse(text, mode="eval").body, {})
    except (SyntaxError, ArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError(str(error) or "it is too deep") from error


class _Expression:
    """One expression, while it is computed."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it takes more than {MAX_STEPS} steps")
        match node:
            case ast.Constant(value=int() | float() as value) if abs(value) <= LARGEST:
                return value
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.value(item, names) for item in items]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(operand, names)
            case ast.BinOp(left=left, op=how, right=right) if type(how) in _OPERATORS:
                a, b = self._number(left, names), self._number(right, names)
                if isinstance(how, ast.Pow) and abs(b) > _LARGEST_POWER:
                    raise ValueError("a power is too large")
                return _OPERATORS[type(how)](a, b)
            case ast.ListComp(
                elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[])]
            ):
                over = self.value(source, names)
                if not isinstance(over, list):
                    raise ValueError("a list is made of a number")
                return [self.value(item, {**names, name: each}) for each in over]
        raise ValueError(f"found {type(node).__name__}")

    def _number(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        value = self.value(node, names)
        if not isinstance(value, int | float) or abs(value) > LARGEST:
            raise ValueError("expected numbers of moderate size")
        return value
