"""One folder an operator; one line here makes it known."""

from lightkernels.ops import condensed_conv2d as condensed_conv2d
from lightkernels.ops import mldn_block as mldn_block
from lightkernels.ops import multi_dwconv2d as multi_dwconv2d
from lightkernels.ops import rsdc2d as rsdc2d
