"""Fused kernels for lightweight CNNs: depthwise convolution with many kernels in one pass, as drop-in modules.

Importing compiles nothing, loads no CUDA and never fails because a binary is missing.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from lightkernels import functional, models, nn, ops
from lightkernels._core.backends import BackendUnavailable, exact_nonfinite, use_backend
from lightkernels._core.explain import explain
from lightkernels._version import __version__
from lightkernels.functional import condensed_conv2d, mldn_block, multi_dwconv2d, rsdc2d
from lightkernels.nn import LearnedGroupConv2d, MLDNBlock, Multiception2d, MultiDepthwiseConv2d, RSDC2d
from lightkernels.nn.convert import convert

if TYPE_CHECKING:
    compress: ModuleType
else:

    def __getattr__(name: str) -> ModuleType:
        if name == "compress":  # read when it is first used: few need it
            return import_module("lightkernels.compress")
        raise AttributeError(f"module 'lightkernels' has no attribute {name!r}")


__all__ = [
    "BackendUnavailable",
    "LearnedGroupConv2d",
    "MLDNBlock",
    "MultiDepthwiseConv2d",
    "Multiception2d",
    "RSDC2d",
    "__version__",
    "compress",
    "condensed_conv2d",
    "convert",
    "exact_nonfinite",
    "explain",
    "functional",
    "mldn_block",
    "models",
    "multi_dwconv2d",
    "nn",
    "ops",
    "rsdc2d",
    "use_backend",
]
