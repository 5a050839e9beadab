"""Algorithms that turn noise into images, one per file. A new sampler is one file and one entry in `AnySampler`."""

from typing import Annotated, get_args

from pydantic import Field, SerializeAsAny

from invfusion.names import Registry, kind_of
from invfusion.plugins import accepts_plugins
from invfusion.samplers.aseq_dip import ASeqDIP
from invfusion.samplers.base import SampleOutput, Sampler
from invfusion.samplers.consistency import Consistency
from invfusion.samplers.daps import DAPS
from invfusion.samplers.ddnm import DDNM
from invfusion.samplers.ddrm import DDRM, UnrolledDDRM
from invfusion.samplers.deis import DEIS
from invfusion.samplers.diffpir import DiffPIR
from invfusion.samplers.dpmpp_2m import DPMpp2M
from invfusion.samplers.dps import DPS
from invfusion.samplers.flow import Flow
from invfusion.samplers.gaussian import GaussianDraws, Wiener
from invfusion.samplers.heun import Heun
from invfusion.samplers.indi import InDI
from invfusion.samplers.mgps import MGPS
from invfusion.samplers.mmse import MMSE
from invfusion.samplers.nppc import NPPC
from invfusion.samplers.pigdm import PiGDM
from invfusion.samplers.pivot import Pivot

_Members = (
    Heun
    | DPMpp2M
    | DEIS
    | Flow
    | Consistency
    | MMSE
    | NPPC
    | DDRM
    | DDNM
    | DPS
    | PiGDM
    | DiffPIR
    | Pivot
    | DAPS
    | MGPS
    | InDI
    | UnrolledDDRM
    | ASeqDIP
    | Wiener
    | GaussianDraws
)

# A plug-in's sampler joins by `@SAMPLERS.register`.
SAMPLERS: Registry[type[_Members]] = Registry("sampler", ((kind_of(member), member) for member in get_args(_Members)))

AnySampler = Annotated[
    Annotated[_Members, Field(discriminator="kind")], accepts_plugins(SAMPLERS, Sampler), SerializeAsAny()
]

# Samples in 10 network calls, for any diffusion model.
FEW_STEP = DEIS(n_steps=10)

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DEIS",
    "DPS",
    "FEW_STEP",
    "MGPS",
    "MMSE",
    "NPPC",
    "SAMPLERS",
    "ASeqDIP",
    "AnySampler",
    "Consistency",
    "DPMpp2M",
    "DiffPIR",
    "Flow",
    "GaussianDraws",
    "Heun",
    "InDI",
    "PiGDM",
    "Pivot",
    "SampleOutput",
    "Sampler",
    "UnrolledDDRM",
    "Wiener",
]
