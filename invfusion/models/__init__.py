"""Denoisers: architecture, presets, checkpoints."""

from invfusion.models.acceleration import compile_denoiser as compile_denoiser
from invfusion.models.acceleration import compile_layers as compile_layers
from invfusion.models.acceleration import compile_network as compile_network
from invfusion.models.acceleration import compiles as compiles
from invfusion.models.acceleration import lower_precision as lower_precision
from invfusion.models.activations import keep_within as keep_within
from invfusion.models.activations import kept_by_shapes as kept_by_shapes
from invfusion.models.activations import recompute as recompute
from invfusion.models.attention import available_backends as available_backends
from invfusion.models.captured import CapturedDenoiser as CapturedDenoiser
from invfusion.models.checkpoint import load_config as load_config
from invfusion.models.checkpoint import load_denoiser as load_denoiser
from invfusion.models.checkpoint import load_manifest as load_manifest
from invfusion.models.checkpoint import load_weights as load_weights
from invfusion.models.checkpoint import save_denoiser as save_denoiser
from invfusion.models.config import DenoiserConfig as DenoiserConfig
from invfusion.models.config import LevelConfig as LevelConfig
from invfusion.models.config import Variant as Variant
from invfusion.models.denoiser import Denoiser as Denoiser
from invfusion.models.denoiser import with_components as with_components
from invfusion.models.hdit import set_attention_backend as set_attention_backend
from invfusion.models.presets import PRESETS as PRESETS
from invfusion.models.presets import build_denoiser as build_denoiser
from invfusion.models.presets import denoiser_config as denoiser_config
