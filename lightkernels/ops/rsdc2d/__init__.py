from lightkernels.ops.rsdc2d.op import OP as OP
from lightkernels.ops.rsdc2d.op import rsdc2d as rsdc2d
