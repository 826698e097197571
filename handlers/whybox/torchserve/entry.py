"""The entry of an archive. TorchServe wants a module of a name of its own with one class defined in it."""

from whybox.torchserve.handler import WhyboxHandler


class Entry(WhyboxHandler):
    """The handler, under this module's name."""
