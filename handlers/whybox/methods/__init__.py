"""Explanation methods, one file each, and their registry."""

from whybox.methods.base import Method
from whybox.methods.odam import Odam

METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Add a method to the registry.

    Raises:
        ValueError: if its name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"a method named {method.name!r} is already there")
    METHODS[method.name] = method


register(Odam())
