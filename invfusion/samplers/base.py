"""What every sampler promises."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.diffusion.schedules import edm_sigmas
from invfusion.errors import OperatorError, ShapeError
from invfusion.gaussian import Prior
from invfusion.names import kind_of
from invfusion.operators import Measurement
from invfusion.operators.base import check_levels
from invfusion.rng import generators, randn
from invfusion.schema import Config

# Some published comparisons ran an algorithm in another form than its authors'; the original is always the default.
AlgorithmVariant = Literal["original", "published"]

# Names the random stream of samplers that are given a seed alone.
STREAM = "restore"

Follows = Literal["posterior", "mean", "approximation", "nothing"]


@dataclass(frozen=True)
class SampleOutput:
    """What a sampler returns.

    x: (B, C, H, W) images in [-1, 1] units, not clipped; nfe: network calls that each image took.
    components: (B, K, C, H, W) orthonormal directions of largest posterior variance; stds: (B, K) along each.

    An image whose trajectory diverged keeps its infinite or not-a-number entries, and `diverged` names it: count and
    report such images, and leave them out of averages. They never touch the other images of the batch.
    """

    x: Tensor
    nfe: int
    components: Tensor | None = None
    stds: Tensor | None = None

    @property
    def diverged(self) -> Tensor:
        """(B,) bool: the images that are not finite."""
        return ~self.x.isfinite().flatten(1).all(dim=1)


class BoundDenoiser:
    """A denoiser with the measurement and labels of one batch: `D(x, sigma)`. It counts the network calls."""

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement | None, class_labels: Tensor | None) -> None:
        self.denoiser, self.measurement, self.class_labels = denoiser, measurement, class_labels
        self.nfe = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The estimate of the clean image, (B, C, H, W), at noise level sigma."""
        return self._call(self.denoiser, x, sigma)  # type: ignore[no-any-return]

    def with_pullback(self, x: Tensor, sigma: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The estimate, and the map v -> (dD/dx)^T v of its Jacobian at x, both (B, C, H, W); the map works once."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = self(leaf, sigma)
        if not denoised.requires_grad:
            raise OperatorError(
                f"autograd cannot differentiate {type(self.denoiser).__name__}; a sampler that requires 'grad' needs a "
                "denoiser of plain torch operations, whose weights were not made in inference mode"
            )
        return denoised.detach(), lambda v: torch.autograd.grad(denoised, leaf, v)[0]

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

    requires: what the algorithm asks of operator and denoiser (keys of `CAPABILITIES`); requires_if_noisy: what it asks
    in addition of a measurement with noise. uses_denoiser: whether it calls the denoiser at all.
    follows: what its images follow in the limit of many steps where the denoiser is exact: draws of the posterior, its
    mean, an approximation of the posterior, or nothing where its network is no denoiser. invfusion.oracle holds each
    sampler to it.
    tunable: the fields worth tuning on validation images, each with the values to try.
    keeps_graph: whether gradients can be taken through the images, as training through a sampler does.
    """

    keeps_graph: ClassVar[bool] = False
    requires: ClassVar[frozenset[str]] = frozenset()
    requires_if_noisy: ClassVar[frozenset[str]] = frozenset()
    uses_denoiser: ClassVar[bool] = True
    follows: ClassVar[Follows] = "approximation"
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {}

    def sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor | None = None,
        *,
        generators: Sequence[torch.Generator] | None = None,
        class_labels: Tensor | None = None,
        seed: int = 0,
    ) -> SampleOutput:
        """Draw one image per measurement (per row of `noise`); an image does not depend on its neighbours in the batch.

        Args:
            denoiser: called as `denoiser(x, sigma, measurement, class_labels)`.
            measurement: what is known about the images, or None to sample unconditionally.
            noise: (B, C, H, W) standard normal, the start of the trajectories; by default drawn from the generators.
            generators: one CPU generator per image, for the noise that is drawn on the way; by default of `seed`.
            class_labels: (B,) long, or None.
            seed: names the draw, where noise or generators are not given.

        Raises:
            OperatorError: the operator or the denoiser lacks what the algorithm requires.
            ShapeError: noise, generators, labels and measurement are not of one batch.
        """
        self.check_capabilities(denoiser, measurement)
        self.check_pairing(denoiser, measurement)
        noise, generators = _drawn(measurement, noise, generators, seed)
        _check_batch(denoiser, measurement, noise, generators, class_labels)
        if "grad" not in self.requires:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.keeps_graph):
                return self._sample(denoiser, measurement, noise, generators, class_labels)
        # Tensors that were made in inference mode cannot take part in a backward pass; copies made outside of it can.
        with torch.inference_mode(False), torch.no_grad():
            measurement = None if measurement is None else measurement.select(slice(None))
            class_labels = None if class_labels is None else class_labels.clone()
            return self._sample(denoiser, measurement, noise.clone(), generators, class_labels)

    @abstractmethod
    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
    ) -> SampleOutput: ...

    def check_capabilities(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:
        """Raise `OperatorError` where the operator or the denoiser lacks what the algorithm requires."""
        kind = kind_of(self)
        required = self.requires | (self.requires_if_noisy if is_noisy(measurement) else frozenset())
        lacking = [name for name in sorted(required) if not CAPABILITIES[name][1](denoiser, measurement)]
        if lacking:
            holder = "nothing" if measurement is None else f"the operator '{measurement.operator.kind}'"
            noise = "noisy measurements of " if set(lacking) <= self.requires_if_noisy else ""
            raise OperatorError(
                "; ".join(f"the sampler '{kind}' requires '{name}': {CAPABILITIES[name][0]}" for name in lacking)
                + f"; it was given {noise}{holder} and a {type(denoiser).__name__}"
            )

    def check_pairing(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:
        """Raise `OperatorError` where the measurement would make no difference to the images."""
        ignored = getattr(denoiser, "is_conditional", None) is False
        if not ignored or measurement is None or measurement.y.numel() == 0:
            return
        kind = kind_of(self)
        raise OperatorError(
            f"the sampler '{kind}' leaves the measurement to the denoiser, but this {type(denoiser).__name__} is "
            "unconditional and would ignore it: take a conditional model, a sampler that restores by itself such as "
            "'ddnm', or no measurement"
        )


class RestoringSampler(Sampler):
    """A sampler that uses the measurement itself, with a denoiser `D` that is told nothing of it."""

    def check_pairing(self, denoiser: DenoiserLike, measurement: Measurement | None) -> None:  # noqa: ARG002
        """Raise `OperatorError` for a conditional model: what it learnt to use would be kept from it."""
        if self.uses_denoiser and getattr(denoiser, "is_conditional", False):
            kind = kind_of(self)
            raise OperatorError(
                f"the sampler '{kind}' uses the measurement itself and needs an unconditional model; this "
                f"{type(denoiser).__name__} is conditional, and would be told nothing: sample it with 'deis' or "
                "another that hands it the measurement, or withhold that on purpose (`Withheld`, `withheld: true`)"
            )

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
    ) -> SampleOutput:
        assert measurement is not None, "checked by `requires`"
        D = BoundDenoiser(denoiser, None, class_labels)
        x = self._restore(D, measurement, noise, generators)
        return SampleOutput(x, D.nfe)

    @abstractmethod
    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """The images, like `noise`."""


class EDMGrid(Sampler):
    """A sampler on the noise levels of EDM: n_steps of them from sigma_max down to sigma_min, then 0."""

    n_steps: int = Field(ge=1)
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}")
        return self

    def levels(self) -> list[float]:
        """The n_steps + 1 noise levels."""
        return edm_sigmas(self.n_steps, self.sigma_max, self.sigma_min, self.rho).tolist()


def is_noisy(measurement: Measurement | None) -> bool:
    """Whether any image of the batch was measured with noise."""
    return measurement is not None and bool((measurement.sigma_y > 0).any())


def _offers_pinv(_: Any, measurement: Measurement | None) -> bool:
    return (
        measurement is not None
        and callable(getattr(measurement.operator, "H_pinv", None))
        and measurement.operator.tier != "adjoint only"
    )


def _offers_adjoint(_: Any, measurement: Measurement | None) -> bool:
    return measurement is not None and callable(getattr(measurement.operator, "H_adjoint", None))


def _offers_spectrum(_: Any, measurement: Measurement | None) -> bool:
    return measurement is not None and getattr(measurement.operator, "has_spectrum", False)


def _offers_damping(_: Any, measurement: Measurement | None) -> bool:
    return measurement is not None and measurement.operator.tier != "adjoint only"


def _offers_grad(_: Any, measurement: Measurement | None) -> bool:
    # That autograd can differentiate the denoiser shows at its first call, which says so if not.
    return measurement is not None


def _offers_components(denoiser: DenoiserLike, _: Measurement | None) -> bool:
    config = getattr(denoiser, "config", None)
    return hasattr(denoiser, "components") and getattr(config, "n_components", 1) > 0


def _offers_prior(denoiser: DenoiserLike, _: Measurement | None) -> bool:
    return isinstance(denoiser, Prior) or isinstance(getattr(denoiser, "prior", None), Prior)


# name -> what is needed in words, and the test.
CAPABILITIES: dict[str, tuple[str, Callable[[Any, Measurement | None], bool]]] = {
    "pinv": ("a measurement whose operator has a pseudo-inverse", _offers_pinv),
    "damped": ("a measurement whose operator has a damped inverse", _offers_damping),
    "adjoint": ("a measurement whose operator has an adjoint", _offers_adjoint),
    "spectral": ("a measurement whose operator knows its singular value decomposition", _offers_spectrum),
    "grad": ("a measurement, and a denoiser that autograd can differentiate", _offers_grad),
    "prior": ("a Gaussian prior, or a model with preconditioning 'gaussian'", _offers_prior),
    "components": ("a denoiser with principal components, such as the distilled 'nppc' model", _offers_components),
}


def _drawn(
    measurement: Measurement | None, noise: Tensor | None, draws: Sequence[torch.Generator] | None, seed: int
) -> tuple[Tensor, Sequence[torch.Generator]]:
    """Noise (B, C, H, W) and B generators, drawn where they are not given."""
    if noise is not None:
        return noise, generators(seed, STREAM, range(len(noise))) if draws is None else draws
    if measurement is None:
        raise ShapeError("hand in noise (B, C, H, W): without a measurement it says how many images of which shape")
    operator = measurement.operator
    draws = generators(seed, STREAM, range(operator.batch_size)) if draws is None else draws
    return randn(operator.image_shape, draws, measurement.y.device), draws


def _check_batch(
    denoiser: DenoiserLike,
    measurement: Measurement | None,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    class_labels: Tensor | None,
) -> None:
    if noise.ndim != 4:
        raise ShapeError(f"noise must be (B, C, H, W), got {tuple(noise.shape)}")
    if len(generators) != len(noise):
        raise ShapeError(f"a batch of {len(noise)} images needs as many generators, got {len(generators)}")
    if class_labels is not None:
        _check_labels(class_labels, len(noise), getattr(denoiser, "n_classes", None))
    if measurement is None:
        return
    expected = (measurement.operator.batch_size, *measurement.operator.image_shape)
    if tuple(noise.shape) != expected:
        raise ShapeError(f"noise {tuple(noise.shape)} does not fit a measurement of images {expected}")
    check_levels(measurement.sigma_y)


def _check_labels(class_labels: Tensor, n: int, n_classes: int | None) -> None:
    """A label for each image; the number of classes itself stands for no class."""
    if tuple(class_labels.shape) != (n,):
        raise ShapeError(f"class_labels must be ({n},), got {tuple(class_labels.shape)}")
    if class_labels.is_floating_point() or class_labels.is_complex() or class_labels.dtype == torch.bool:
        raise ShapeError(f"class_labels must be whole numbers, got {class_labels.dtype}")
    if n_classes and not bool(((class_labels >= 0) & (class_labels <= n_classes)).all()):
        raise ShapeError(
            f"class_labels must lie in 0..{n_classes} ({n_classes}: no class), got {class_labels.tolist()}"
        )


def fresh_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (B, ...) of the shape, dtype and device of `like`, row i from generator i."""
    return randn(like.shape[1:], generators, device=like.device).to(like.dtype)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to broadcast over `like`, (B, ...), in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def filtered(measurement: Measurement, y: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """y weighted by gain(sigma_y / q) along each singular vector of singular value q, shaped like y.

    sigma_y / q is the noise that H_pinv(y) has along that vector. Without noise it is 0 for all of them, so that no
    singular value decomposition is needed. What lies outside the range of H means nothing afterwards: apply H_pinv.
    """
    sigma_y = measurement.sigma_y
    if not is_noisy(measurement):
        return gain(per_sample(sigma_y, y)) * y
    return measurement.operator.spectral(y, lambda q: gain(per_sample(sigma_y, q) / q))


def damped(measurement: Measurement, y: Tensor, variance: float) -> Tensor:
    """H_adjoint (H H^T + sigma_y^2 / variance)^-1 y, (B, C, H, W): what y tells of an image known to within `variance`.

    Along a singular vector it is H_pinv y times 1 / (1 + s^2 / variance), with s = sigma_y / q.
    """
    H, sigma_y = measurement.operator, measurement.sigma_y
    if H.has_spectrum or not is_noisy(measurement):
        return H.H_pinv(filtered(measurement, y, lambda s: 1 / (1 + s.square() / variance)))
    return H.H_adjoint(H.damped_inverse(y, sigma_y.square() / variance))


def ancestral_step(
    x: Tensor, denoised: Tensor, sigma: float, t: float, eta: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """x (B, C, H, W) from level sigma to t < sigma: eta = 0 is a step of the probability-flow ODE, 1 one of DDPM.

    x_t = D + kept (x - D) / sigma + fresh z, with fresh^2 + kept^2 = t^2. Source: DDIM, Eq. 12, variance exploding.
    """
    fresh = eta * t * math.sqrt(sigma**2 - t**2) / sigma
    kept = math.sqrt(t**2 - fresh**2)
    x = denoised + kept * (x - denoised) / sigma
    return x + fresh * fresh_noise(x, generators) if fresh > 0 else x
