"""The best Gaussian prior of given images, conditioned exactly on any linear measurement."""

from invfusion.gaussian.posterior import GaussianPosterior
from invfusion.gaussian.prior import GaussianPrior, Law, Prior

__all__ = ["GaussianPosterior", "GaussianPrior", "Law", "Prior"]
