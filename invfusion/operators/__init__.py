"""Deterministic linear maps built from explicit tensors.

A new operator is one file and one entry in the list below, which enrols it in the contract tests.
"""

from invfusion.operators.base import LinearOperator, Measurement, Tier
from invfusion.operators.blur import Blur
from invfusion.operators.channels import Bayer, Grayscale
from invfusion.operators.checks import OperatorReport, check_operator
from invfusion.operators.combined import Composition, Scaled, Stack, compose, scaled, stack
from invfusion.operators.compressed_sensing import CompressedSensing
from invfusion.operators.convolution import StridedConvolution
from invfusion.operators.downsampling import Downsampling
from invfusion.operators.fourier import Fourier
from invfusion.operators.inpainting import Inpainting
from invfusion.operators.masks import MaskOperator
from invfusion.operators.matrix import MatrixOperator
from invfusion.operators.null import NullOperator
from invfusion.operators.published_blur import PublishedBlur
from invfusion.operators.registry import OPERATORS
from invfusion.operators.spec import operator_from_spec, spec_from_json, spec_to_json

_MEMBERS: list[type[LinearOperator]] = [
    MaskOperator, Inpainting, StridedConvolution, Blur, Downsampling, Grayscale, Bayer, Fourier, CompressedSensing,
    MatrixOperator, NullOperator, Composition, Stack, Scaled, PublishedBlur,
]  # fmt: skip
for _member in _MEMBERS:
    OPERATORS.register(_member)

__all__ = [
    "OPERATORS",
    "Bayer",
    "Blur",
    "Composition",
    "CompressedSensing",
    "Downsampling",
    "Fourier",
    "Grayscale",
    "Inpainting",
    "LinearOperator",
    "MaskOperator",
    "MatrixOperator",
    "Measurement",
    "NullOperator",
    "OperatorReport",
    "PublishedBlur",
    "Scaled",
    "Stack",
    "StridedConvolution",
    "Tier",
    "check_operator",
    "compose",
    "operator_from_spec",
    "scaled",
    "spec_from_json",
    "spec_to_json",
    "stack",
]
