"""The operators as functions."""

from lightkernels.ops.multi_dwconv2d import multi_dwconv2d

__all__ = ["multi_dwconv2d"]
