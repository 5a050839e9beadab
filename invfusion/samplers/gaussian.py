"""What the Gaussian prior of a model knows without any network: the baselines of everything that is trained."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.gaussian import Law, Prior
from invfusion.operators import Measurement
from invfusion.samplers.base import Follows, SampleOutput, Sampler


class _OfPrior(Sampler):
    """A sampler of a prior's posterior; `denoiser` is the prior, or a model that has one. No network calls."""

    requires: ClassVar[frozenset[str]] = frozenset({"prior"})
    uses_denoiser: ClassVar[bool] = False

    def check_pairing(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:
        """Nothing to refuse: a prior uses every measurement, whatever its model is told."""

    @staticmethod
    def _law(denoiser: DenoiserLike, measurement: Measurement | None, noise: Tensor) -> Law:
        prior = denoiser if isinstance(denoiser, Prior) else denoiser.prior  # type: ignore[attr-defined] # CAPABILITIES
        return prior.law_of(noise.shape, measurement)


class Wiener(_OfPrior):
    """The mean of the Gaussian posterior, the best estimate that is linear in y: the Wiener filter."""

    follows: ClassVar[Follows] = "mean"
    kind: Literal["wiener"] = "wiener"

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
        class_labels: Tensor | None,  # noqa: ARG002
    ) -> SampleOutput:
        return SampleOutput(self._law(denoiser, measurement, noise).mean.to(noise.device), nfe=0)


class GaussianDraws(_OfPrior):
    """Exact draws of the Gaussian posterior."""

    follows: ClassVar[Follows] = "approximation"
    kind: Literal["gaussian_posterior"] = "gaussian_posterior"

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,  # noqa: ARG002
    ) -> SampleOutput:
        draws = self._law(denoiser, measurement, noise).sample(generators)
        return SampleOutput(draws.to(noise.device), nfe=0)
