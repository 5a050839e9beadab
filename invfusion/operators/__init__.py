"""Deterministic linear maps built from explicit tensors.

A new operator is one file and one entry in `spec.OPERATORS`, which enrols it in the contract tests.
"""

from invfusion.operators.base import LinearOperator, Measurement
from invfusion.operators.blur import Blur
from invfusion.operators.checks import OperatorReport, check_operator
from invfusion.operators.convolution import StridedConvolution
from invfusion.operators.downsampling import Downsampling
from invfusion.operators.inpainting import Inpainting
from invfusion.operators.masks import MaskOperator
from invfusion.operators.matrix import MatrixOperator
from invfusion.operators.null import NullOperator
from invfusion.operators.spec import OPERATORS, operator_from_spec, spec_from_json, spec_to_json

__all__ = [
    "OPERATORS",
    "Blur",
    "Downsampling",
    "Inpainting",
    "LinearOperator",
    "MaskOperator",
    "MatrixOperator",
    "Measurement",
    "NullOperator",
    "OperatorReport",
    "StridedConvolution",
    "check_operator",
    "operator_from_spec",
    "spec_from_json",
    "spec_to_json",
]
