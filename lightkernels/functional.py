"""The operators as functions."""

from lightkernels.ops.condensed_conv2d import condensed_conv2d
from lightkernels.ops.mldn_block import mldn_block
from lightkernels.ops.mldn_block.op import mldn_block_outputs as mldn_block_outputs
from lightkernels.ops.multi_dwconv2d import multi_dwconv2d
from lightkernels.ops.rsdc2d import rsdc2d
from lightkernels.ops.rsdc2d.moments import rsdc2d_moments as rsdc2d_moments

__all__ = ["condensed_conv2d", "mldn_block", "multi_dwconv2d", "rsdc2d"]
