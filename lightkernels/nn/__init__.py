"""Modules: parameters, initialisation and state dict around the operators of :mod:`lightkernels.functional`."""

from lightkernels.nn.convert import rsdc_rule
from lightkernels.nn.multi_depthwise import MultiDepthwiseConv2d
from lightkernels.nn.rsdc import RSDC2d
from lightkernels.nn.separable import DepthwiseSeparable2d, Multiception2d

__all__ = ["DepthwiseSeparable2d", "MultiDepthwiseConv2d", "Multiception2d", "RSDC2d", "rsdc_rule"]
