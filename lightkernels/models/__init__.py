"""The zoo: networks of the papers by name, and their parameters and operations under the papers' conventions."""

from lightkernels.models.counting import Count, count
from lightkernels.models.mobilenetv2 import dilated_mobilenetv2, mobilenetv2
from lightkernels.models.multiception import multiception_net
from lightkernels.models.pydmobilenet import pydmobilenet
from lightkernels.models.registry import create_model, list_models

__all__ = [
    "Count",
    "count",
    "create_model",
    "dilated_mobilenetv2",
    "list_models",
    "mobilenetv2",
    "multiception_net",
    "pydmobilenet",
]
