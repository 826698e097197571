"""Follows the references of a lazy config, which `LazyConfig.save` leaves as they are.

The zoo's test sets have such: ``image_format: ${...train.mapper.image_format}``. OmegaConf resolves a whole
config or nothing, calls resolvers, and has no bounds; here it is one part, of data alone. Nothing here needs
detectron2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from whybox.recipe import RecipeError

Place = tuple[str | int, ...]
"""Names and positions, from the top of a config."""

MAX_REFERENCES = 100
"""That are followed for one value; those that go in a circle have no end."""

MAX_VALUES = 100_000
"""Of a configuration, those that are referred to counted each time. The zoo's have some hundreds."""

MAX_DEPTH = 100
"""Of lists and mappings within each other."""

_REFERENCE = re.compile(r"\$\{(\.*)([^.${}:][^${}:]*)\}")


class Absent:
    """Stands for what a config does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = Absent()


def look_up(data: Mapping[str, Any], place: Place, where: str) -> Any:
    """Look up what is at a place, references on the way and at its end followed.

    Args:
        data: a whole lazy config.
        place: in it.
        where: the file, for messages.

    Returns:
        The value, or `ABSENT`. References further inside of it are left.

    Raises:
        RecipeError: for a reference to what is not there.
    """
    found = _References(data, f"{where}: {'.'.join(map(str, place))}").find(place)
    return ABSENT if found is None else found[1]


def resolve(data: Mapping[str, Any], place: Place, where: str) -> Any:
    """Copy what is at a place, all references in it replaced by what they refer to.

    Args:
        data: a whole lazy config.
        place: in it, where something is.
        where: the file, for messages.

    Raises:
        RecipeError: for a reference to what is not there, or values beyond `MAX_VALUES` or `MAX_DEPTH`.
    """
    left = MAX_VALUES

    def copied(place: Place, depth: int) -> Any:
        nonlocal left
        left -= 1
        field = f"{where}: {'.'.join(map(str, place))}"
        if left < 0 or depth > MAX_DEPTH:
            raise RecipeError(f"{field}: expected at most {MAX_VALUES} values, {MAX_DEPTH} deep; got more")
        found = _References(data, field).find(place)
        if found is None:
            raise RecipeError(f"{field}: expected a value; got nothing")
        here, value = found
        if isinstance(value, Mapping):
            return {name: copied((*here, name), depth + 1) for name in value}
        if isinstance(value, list):
            return [copied((*here, position), depth + 1) for position in range(len(value))]
        return value

    return copied(place, 0)


class _References:
    """Follows references as OmegaConf does: ``${a.b}`` from the top, ``${.b}`` from beside, ``${..b}`` above.

    Of its grammar no more: not ``${resolver:…}``, nor text around a reference.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data = data
        self._where = where
        self._left = MAX_REFERENCES

    def find(self, place: Place) -> tuple[Place, Any] | None:
        """Find what is at a place: where it is in the end, and what; None if nothing is."""
        here: Place = ()
        value: Any = self._data
        for name in place:
            if isinstance(value, Mapping) and name in value:
                value = value[name]
            elif isinstance(value, list) and 0 <= _position(name) < len(value):
                value = value[_position(name)]
            else:
                return None
            here = (*here, name)
            if isinstance(value, str) and "${" in value:
                here, value = self._target(value, here)
        return here, value

    def _target(self, said: str, place: Place) -> tuple[Place, Any]:
        """Find what a reference at a place refers to."""
        self._left -= 1
        match = _REFERENCE.fullmatch(said)
        found = None
        if match and self._left >= 0 and len(match[1]) <= len(place):
            above = place[: -len(match[1])] if match[1] else ()
            found = self.find((*above, *re.findall(r"[^.\[\]]+", match[2])))
        if found is None:
            raise RecipeError(
                f"{self._where}: expected a reference to another part of the config; got {said!r}"
            )
        return found


def _position(name: str | int) -> int:
    """Say which item of a list a name is; -1 if none."""
    return int(name) if isinstance(name, int) or (name.isdecimal() and len(name) < 10) else -1
