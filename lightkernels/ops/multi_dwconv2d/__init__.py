from lightkernels.ops.multi_dwconv2d.op import OP as OP
from lightkernels.ops.multi_dwconv2d.op import multi_dwconv2d as multi_dwconv2d
