"""Layer-wise differentiable compression: a network's bulky operators exchanged for light ones (Diao et al. 2021).

``compress`` does all; ``plan``, ``reconstruct``, ``search``, ``derive`` and ``finetune`` are its stages, and
``Searcher`` is the search for a training loop of your own.
"""

from lightkernels.compress.architecture import Architecture, ArchitectureError, load, save
from lightkernels.compress.checkpoint import CheckpointError
from lightkernels.compress.cost import Cost, cost
from lightkernels.compress.derive import derive, random_architectures, recalibrate
from lightkernels.compress.loop import Recipe, accuracy
from lightkernels.compress.operators import build_operator, list_operators, plain, register_operator
from lightkernels.compress.pipeline import Result, compress
from lightkernels.compress.plan import Plan, Target
from lightkernels.compress.reconstruct import measure_latencies, plan, reconstruct
from lightkernels.compress.search import finetune, search
from lightkernels.compress.searcher import Searcher
from lightkernels.compress.selection import Selection, selections
from lightkernels.compress.settings import Settings, preset

__all__ = [
    "Architecture",
    "ArchitectureError",
    "CheckpointError",
    "Cost",
    "Plan",
    "Recipe",
    "Result",
    "Searcher",
    "Selection",
    "Settings",
    "Target",
    "accuracy",
    "build_operator",
    "compress",
    "cost",
    "derive",
    "finetune",
    "list_operators",
    "load",
    "measure_latencies",
    "plain",
    "plan",
    "preset",
    "random_architectures",
    "recalibrate",
    "reconstruct",
    "register_operator",
    "save",
    "search",
    "selections",
]
