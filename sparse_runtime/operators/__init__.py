"""The operators of a network: small files with the interface of operator.py."""

from .convolution import Convolution, Depthwise
from .elementwise import Add, Multiply, Scale
from .moving import Channels, Concatenation, Flatten, Upsample
from .operator import Operator, Shape
from .pooling import AveragePool, MaxPool, Mean

KINDS = {
    operator.kind: operator
    for operator in (
        Convolution, Depthwise, MaxPool, AveragePool, Mean, Add, Multiply, Scale, Concatenation,
        Channels, Flatten, Upsample,
    )
}  # fmt: skip

__all__ = [
    "KINDS", "Add", "AveragePool", "Channels", "Concatenation", "Convolution", "Depthwise",
    "Flatten", "MaxPool", "Mean", "Multiply", "Operator", "Scale", "Shape", "Upsample",
]  # fmt: skip
