"""What every sampler promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import Measurement
from invfusion.rng import randn
from invfusion.schema import Config


@dataclass(frozen=True)
class SampleOutput:
    """What a sampler returns.

    x: (B, C, H, W) images in [-1, 1] units, not clipped; nfe: network calls that each image took.
    components: (B, K, C, H, W) orthonormal directions of largest posterior variance; stds: (B, K) along each.
    """

    x: Tensor
    nfe: int
    components: Tensor | None = None
    stds: Tensor | None = None


class BoundDenoiser:
    """A denoiser with the measurement and labels of one batch: `D(x, sigma)`. It counts the network calls."""

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement | None, class_labels: Tensor | None) -> None:
        self.denoiser, self.measurement, self.class_labels = denoiser, measurement, class_labels
        self.nfe = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The estimate of the clean image, (B, C, H, W), at noise level sigma."""
        return self._call(self.denoiser, x, sigma)  # type: ignore[no-any-return]

    def components(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The estimate with its raw principal directions: (B, C, H, W) and (B, K, C, H, W)."""
        mean, directions = self._call(self.denoiser.components, x, sigma)  # type: ignore[attr-defined] # CAPABILITIES
        return mean, directions

    def _call(self, function: Callable[..., Any], x: Tensor, sigma: float) -> Any:
        # A wrapper such as classifier-free guidance says how often it runs the network.
        self.nfe += getattr(self.denoiser, "calls_per_evaluation", 1)
        levels = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        return function(x, levels, self.measurement, self.class_labels)


class Sampler(Config, ABC):
    """An algorithm that turns noise into images with the help of a denoiser.

    `requires` names what the algorithm asks of operator and denoiser (the keys of `CAPABILITIES`).
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        *,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None = None,
    ) -> SampleOutput:
        """Draw one image per row of `noise`; an image does not depend on its neighbours in the batch.

        Args:
            denoiser: called as `denoiser(x, sigma, measurement, class_labels)`.
            measurement: what is known about the images, or None to sample unconditionally.
            noise: (B, C, H, W) standard normal, the start of the trajectories.
            generators: one CPU generator per image, for the noise that is drawn on the way.
            class_labels: (B,) long, or None.

        Raises:
            OperatorError: the operator or the denoiser lacks what the algorithm requires.
            ShapeError: noise, generators, labels and measurement are not of one batch.
        """
        self._check_capabilities(denoiser, measurement)
        _check_batch(measurement, noise, generators, class_labels)
        return self._sample(denoiser, measurement, noise, generators, class_labels)

    @abstractmethod
    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
    ) -> SampleOutput: ...

    def _check_capabilities(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:
        for name in sorted(self.requires):
            needed, offers = CAPABILITIES[name]
            if not offers(denoiser, measurement):
                holder = "nothing" if measurement is None else f"the operator '{measurement.operator.kind}'"
                raise OperatorError(
                    f"the sampler '{type(self).model_fields['kind'].default}' requires '{name}': {needed}; "
                    f"it was given {holder} and a {type(denoiser).__name__}"
                )


def _offers_pinv(_: Any, measurement: Measurement | None) -> bool:
    return measurement is not None and callable(getattr(measurement.operator, "H_pinv", None))


def _offers_components(denoiser: DenoiserLike, _: Measurement | None) -> bool:
    config = getattr(denoiser, "config", None)
    return hasattr(denoiser, "components") and getattr(config, "n_components", 1) > 0


# name -> what is needed in words, and the test.
CAPABILITIES: dict[str, tuple[str, Callable[[Any, Measurement | None], bool]]] = {
    "pinv": ("a measurement whose operator has an exact pseudo-inverse", _offers_pinv),
    "components": ("a denoiser with principal components, such as the distilled 'nppc' model", _offers_components),
}


def _check_batch(
    measurement: Measurement | None,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    class_labels: Tensor | None,
) -> None:
    if noise.ndim != 4:
        raise ShapeError(f"noise must be (B, C, H, W), got {tuple(noise.shape)}")
    if len(generators) != len(noise):
        raise ShapeError(f"a batch of {len(noise)} images needs as many generators, got {len(generators)}")
    if class_labels is not None and class_labels.shape != noise.shape[:1]:
        raise ShapeError(f"class_labels must be ({len(noise)},), got {tuple(class_labels.shape)}")
    if measurement is None:
        return
    expected = (measurement.operator.batch_size, *measurement.operator.image_shape)
    if tuple(noise.shape) != expected:
        raise ShapeError(f"noise {tuple(noise.shape)} does not fit a measurement of images {expected}")


def fresh_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`, row i from generator i."""
    return randn(like.shape[1:], generators, device=like.device).to(like.dtype)
