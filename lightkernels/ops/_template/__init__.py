from .op import NAME as NAME
from .op import OP as OP
from .op import function as function

globals()[NAME] = function
