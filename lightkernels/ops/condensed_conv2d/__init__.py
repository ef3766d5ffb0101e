from lightkernels.ops.condensed_conv2d.op import OP as OP
from lightkernels.ops.condensed_conv2d.op import condensed_conv2d as condensed_conv2d
