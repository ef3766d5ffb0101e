"""Fused kernels for lightweight CNNs: depthwise convolution with many kernels in one pass, as drop-in modules.

Importing compiles nothing, loads no CUDA and never fails because a binary is missing.
"""

from lightkernels import functional, models, nn, ops
from lightkernels._core.backends import BackendUnavailable, exact_nonfinite, use_backend
from lightkernels._core.explain import explain
from lightkernels._version import __version__
from lightkernels.functional import condensed_conv2d, mldn_block, multi_dwconv2d, rsdc2d
from lightkernels.nn.convert import convert

__all__ = [
    "BackendUnavailable",
    "__version__",
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
