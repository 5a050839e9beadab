"""Metrics that say what they are, one per file."""

from invfusion.metrics.bootstrap import mean_interval, statistic_interval
from invfusion.metrics.calibration import (
    coverage,
    cumulative,
    projected,
    ranks,
    spread_and_error,
    tarp_ranks,
    uniformity_gap,
)
from invfusion.metrics.components import captured_energy, squared_projections
from invfusion.metrics.consistency import consistency_mse, consistency_sse
from invfusion.metrics.features import InceptionFeatures, PixelFeatures
from invfusion.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_distance_from,
    kernel_distance,
    kernel_distance_from,
)
from invfusion.metrics.lpips import LPIPS
from invfusion.metrics.psnr import psnr, psnr_ceiling

__all__ = [
    "LPIPS",
    "FeatureStatistics",
    "InceptionFeatures",
    "PixelFeatures",
    "captured_energy",
    "consistency_mse",
    "consistency_sse",
    "coverage",
    "cumulative",
    "frechet_distance",
    "frechet_distance_from",
    "kernel_distance",
    "kernel_distance_from",
    "mean_interval",
    "projected",
    "psnr",
    "psnr_ceiling",
    "ranks",
    "spread_and_error",
    "squared_projections",
    "statistic_interval",
    "tarp_ranks",
    "uniformity_gap",
]
