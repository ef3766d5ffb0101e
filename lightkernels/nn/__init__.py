"""Modules: parameters, initialisation and state dict around the operators of :mod:`lightkernels.functional`."""

from lightkernels.nn.condensed import CondensedConv2d, CondensedReactivation, condense
from lightkernels.nn.convert import rsdc_rule
from lightkernels.nn.learned_group import (
    LearnedGroupConv2d,
    SparseFeatureReactivation,
    group_lasso,
    set_condensation_progress,
)
from lightkernels.nn.mldn import MLDNBlock
from lightkernels.nn.multi_depthwise import MultiDepthwiseConv2d
from lightkernels.nn.rsdc import RSDC2d
from lightkernels.nn.separable import DepthwiseSeparable2d, Multiception2d

__all__ = [
    "CondensedConv2d",
    "CondensedReactivation",
    "DepthwiseSeparable2d",
    "LearnedGroupConv2d",
    "MLDNBlock",
    "MultiDepthwiseConv2d",
    "Multiception2d",
    "RSDC2d",
    "SparseFeatureReactivation",
    "condense",
    "group_lasso",
    "rsdc_rule",
    "set_condensation_progress",
]
