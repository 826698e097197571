"""Explanation methods, one file each, and their registry."""

from whybox.methods.activation import Activation
from whybox.methods.attention import Attention
from whybox.methods.base import Method
from whybox.methods.class_slices import ClassSlices
from whybox.methods.drise import DRise
from whybox.methods.grad_cam import GradCam, GradCamPlusPlus
from whybox.methods.mask_out import MaskOut
from whybox.methods.odam import Odam
from whybox.methods.odsmoothgrad import OdSmoothGrad

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
register(GradCam())
register(GradCamPlusPlus())
register(Activation())
register(ClassSlices())
register(DRise())
register(MaskOut())
register(OdSmoothGrad())
register(Attention())
