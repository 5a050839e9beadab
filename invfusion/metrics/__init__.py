"""Metrics that say what they are, one object per file. A new metric is one file and one line in `_ALL`.

tools/ has what they are made of.
"""

from invfusion.metrics.base import Metric, Need, Networks, Restorations
from invfusion.metrics.cfd_pixel8x8 import CFD_PIXEL8X8
from invfusion.metrics.cfid import CFID
from invfusion.metrics.consistency_mse import CONSISTENCY_MSE
from invfusion.metrics.consistency_sse import CONSISTENCY_SSE
from invfusion.metrics.coverage_90 import COVERAGE_90
from invfusion.metrics.crps import CRPS, crps
from invfusion.metrics.energy_score import ENERGY_SCORE, energy_score
from invfusion.metrics.fd_pixel8x8 import FD_PIXEL8X8
from invfusion.metrics.fid import FID
from invfusion.metrics.kd_pixel8x8 import KD_PIXEL8X8
from invfusion.metrics.kid import KID
from invfusion.metrics.lpips import LPIPS_DISTANCE
from invfusion.metrics.nppc_captured_energy import NPPC_CAPTURED_ENERGY
from invfusion.metrics.nppc_std_ratio import NPPC_STD_RATIO
from invfusion.metrics.psnr import PSNR, psnr, psnr_ceiling
from invfusion.metrics.std_ratio import STD_RATIO
from invfusion.metrics.tarp_gap import TARP_GAP
from invfusion.metrics.tools.bootstrap import mean_interval, statistic_interval
from invfusion.metrics.tools.calibration import (
    coverage,
    cumulative,
    projected,
    ranks,
    spread_and_error,
    tarp_ranks,
    uniformity_gap,
)
from invfusion.metrics.tools.components import captured_energy, squared_projections
from invfusion.metrics.tools.features import InceptionFeatures, pixel_features
from invfusion.metrics.tools.frechet import (
    FeatureStatistics,
    frechet_distance,
    kernel_distance,
)
from invfusion.metrics.tools.lpips import LPIPS
from invfusion.metrics.tools.residual import squared_residual
from invfusion.names import Registry

# In the order of tables.
_ALL = (
    PSNR,
    FID,
    CFID,
    FD_PIXEL8X8,
    CFD_PIXEL8X8,
    CONSISTENCY_MSE,
    CONSISTENCY_SSE,
    LPIPS_DISTANCE,
    KID,
    KD_PIXEL8X8,
    NPPC_CAPTURED_ENERGY,
    NPPC_STD_RATIO,
    ENERGY_SCORE,
    CRPS,
    TARP_GAP,
    COVERAGE_90,
    STD_RATIO,
)


METRICS = Registry("metric", ((metric.name, metric) for metric in _ALL))

__all__ = [
    "LPIPS",
    "METRICS",
    "FeatureStatistics",
    "InceptionFeatures",
    "Metric",
    "Need",
    "Networks",
    "Restorations",
    "captured_energy",
    "coverage",
    "crps",
    "cumulative",
    "energy_score",
    "frechet_distance",
    "kernel_distance",
    "mean_interval",
    "pixel_features",
    "projected",
    "psnr",
    "psnr_ceiling",
    "ranks",
    "spread_and_error",
    "squared_projections",
    "squared_residual",
    "statistic_interval",
    "tarp_ranks",
    "uniformity_gap",
]
