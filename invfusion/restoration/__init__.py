"""From a measurement and its operator to images; picture files in and out; networks of one's own."""

from invfusion.restoration.foreign import as_denoiser
from invfusion.restoration.models import load_model
from invfusion.restoration.pictures import load_image, load_kernel, load_mask, save_image
from invfusion.restoration.plausibility import MeasurementWarning
from invfusion.restoration.restoring import Restoration, restore

__all__ = [
    "MeasurementWarning",
    "Restoration",
    "as_denoiser",
    "load_image",
    "load_kernel",
    "load_mask",
    "load_model",
    "restore",
    "save_image",
]
