from lightkernels.ops.mldn_block.op import OP as OP
from lightkernels.ops.mldn_block.op import mldn_block as mldn_block
