"""Priors whose posteriors are known in closed form, to judge samplers and models against the truth."""

from invfusion.oracle.denoiser import ExactDenoiser
from invfusion.oracle.fit import fit_mixture
from invfusion.oracle.mixture import GaussianMixture

__all__ = ["ExactDenoiser", "GaussianMixture", "fit_mixture"]
