"""RAM, deepinv's restorer that is told the operator, as a sampler: the plug-in "invfusion.interop._ram".

Importing it registers the sampler, so nothing does but a user's `plugins`. Name it there, in params.yaml, and a method
`sampler: {kind: ram}`. The weights are not ours to give: `mterris/ram`, saved as the file that `weights` names.
"""

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import OperatorError, WeightsUnavailableError
from invfusion.interop.deepinv import image_from_deepinv, to_deepinv
from invfusion.metrics.tools.torchvision_import import import_torchvision
from invfusion.operators import Measurement, scaled
from invfusion.samplers import SAMPLERS
from invfusion.samplers.base import Follows, SampleOutput, Sampler


@SAMPLERS.register
class RAM(Sampler):
    """A point estimate in one call of a network of 35.6 million parameters, trained on many operators.

    weights: the file of its state dict. Images are in [0, 1] there, so that y becomes (y + H 1) / 2 and sigma_y half of
    itself; and the operator is divided by its norm, as the network expects. Source: Terris et al. 2025 (2503.08915).
    Raises `WeightsUnavailableError` where the weights are missing, and `OperatorError` where deepinv is.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"adjoint", "damped"})
    uses_denoiser: ClassVar[bool] = False
    # A point estimate, though one trained for the absolute error on other images.
    follows: ClassVar[Follows] = "mean"
    kind: Literal["ram"] = "ram"
    weights: Path = Path("weights/ram.pth.tar")

    def check_capabilities(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:
        super().check_capabilities(denoiser, measurement)
        if not self.weights.is_file():
            raise WeightsUnavailableError(
                f"the sampler 'ram' has no file {self.weights}: save the weights of mterris/ram there, or leave it out"
            )

    def check_pairing(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:
        """Nothing to refuse: it brings its own network."""

    def _sample(
        self,
        denoiser: DenoiserLike,  # noqa: ARG002
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
        class_labels: Tensor | None,  # noqa: ARG002
    ) -> SampleOutput:
        assert measurement is not None, "checked by `requires`"
        import_torchvision()
        network = _network(self.weights.resolve(), str(noise.device))
        with torch.no_grad():
            images = [_restored(network, measurement.select([i])) for i in range(len(noise))]
        return SampleOutput(torch.cat(images), nfe=1)


def _restored(network: Any, measurement: Measurement) -> Tensor:
    """One image, (1, C, H, W)."""
    H = measurement.operator
    white = torch.ones(1, *H.image_shape, dtype=measurement.y.dtype, device=measurement.y.device)
    norm = float(H.norm.clamp(min=1e-12))
    v = (measurement.y + H.H(white)) / (2 * norm)
    sigma = measurement.sigma_y / (2 * norm)
    restored: Tensor = network(v, to_deepinv(scaled(H, 1 / norm)), sigma=sigma)
    return image_from_deepinv(restored)


@cache
def _network(weights: Path, device: str) -> Any:
    try:
        models = importlib.import_module("deepinv.models")
    except ImportError as problem:
        raise OperatorError(
            f"deepinv cannot be imported ({problem}): pip install -e '.[deepinv]' in invfusion's repository"
        ) from problem
    try:
        return models.RAM(device=device, pretrained=str(weights)).eval()
    # Whatever torch makes of a wrong file.
    except Exception as problem:
        raise WeightsUnavailableError(f"{weights} does not hold RAM's weights: {problem}") from problem
