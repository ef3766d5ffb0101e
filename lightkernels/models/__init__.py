"""The zoo: networks of the papers by name, and their parameters and operations under the papers' conventions."""

from lightkernels.models.cifar import cifar_resnet, resnet18_cifar, vgg16_cifar
from lightkernels.models.condensenet import condensenet
from lightkernels.models.counting import Count, count
from lightkernels.models.densenet import densenet121_16
from lightkernels.models.mldn import mldn
from lightkernels.models.mobilenetv2 import dilated_mobilenetv2, mobilenetv2, mobilenetv2_16
from lightkernels.models.multiception import multiception_net
from lightkernels.models.pydmobilenet import pydmobilenet
from lightkernels.models.registry import create_model, list_models

__all__ = [
    "Count",
    "cifar_resnet",
    "condensenet",
    "count",
    "create_model",
    "densenet121_16",
    "dilated_mobilenetv2",
    "list_models",
    "mldn",
    "mobilenetv2",
    "mobilenetv2_16",
    "multiception_net",
    "pydmobilenet",
    "resnet18_cifar",
    "vgg16_cifar",
]
