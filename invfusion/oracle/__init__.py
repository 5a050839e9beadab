"""Priors whose posteriors are known in closed form, to judge samplers and models against the truth."""

from invfusion.oracle.denoiser import ExactDenoiser
from invfusion.oracle.fit import fit_mixture, gaussian_prior, mixture_of
from invfusion.oracle.judge import DECOYS, LIMIT, Draw, Oracle, Score, Verdict, draw_measurements, exact_sampler
from invfusion.oracle.mixture import GaussianMixture

__all__ = [
    "DECOYS",
    "LIMIT",
    "Draw",
    "ExactDenoiser",
    "GaussianMixture",
    "Oracle",
    "Score",
    "Verdict",
    "draw_measurements",
    "exact_sampler",
    "fit_mixture",
    "gaussian_prior",
    "mixture_of",
]
