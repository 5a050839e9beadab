"""deepinv's physics as operators, and our operators and models in deepinv (0.5).

Images are u in [0, 1] there and x = 2u - 1 here. So a measurement v = A u + sigma n there is y = 2v - A 1 here, with
sigma_y = 2 sigma: H = A in both.
"""

import copy
import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import InvFusionError, OperatorError
from invfusion.operators.base import Gain, LinearOperator, Measurement, Tier, checked_image_shape, derived
from invfusion.samplers import MMSE, Sampler

# Allowed relative error of physics' own adjoint and pseudo-inverse; what is worse is derived here instead.
TOLERANCE = 1e-4


def from_deepinv(physics: Any, img_size: Sequence[int]) -> LinearOperator:
    """A linear physics, cloned, as an operator of one sample for images img_size = (C, H, W).

    Its tier is exact where deepinv knows its singular values and they hold; else its inverses are found by our
    iterations, since `A_dagger` is one whose error nobody states. Its noise model has no part in it; see
    `measurement_from_deepinv`.
    Raises `OperatorError` for physics that are not linear, of complex or several measurements, or with parameters of
    their own for each sample of a batch.
    """
    return DeepinvOperator(physics, img_size)


def measurement_from_deepinv(
    v: Tensor, physics: Any, img_size: Sequence[int], sigma: Tensor | float = 0.0
) -> Measurement:
    """A measurement v (B, *M) of images in [0, 1], with noise of deviation sigma, as one of images in [-1, 1]."""
    operator = physics if isinstance(physics, LinearOperator) else from_deepinv(physics, img_size)
    white = operator.H(torch.ones(1, *operator.image_shape, dtype=v.dtype, device=v.device))
    return Measurement(2 * v - white, operator, 2 * torch.as_tensor(sigma, dtype=torch.float32))


def image_from_deepinv(u: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] -> [-1, 1]."""
    return 2 * u - 1


def image_to_deepinv(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] -> [0, 1]."""
    return (x + 1) / 2


def to_deepinv(operator: LinearOperator, noise_model: Any = None) -> Any:
    """The operator as a `deepinv.physics.LinearPhysics`: A, A_adjoint, A_dagger and prox_l2 are ours."""
    return _physics_type()(operator, noise_model)


def to_deepinv_reconstructor(model: DenoiserLike, sampler: Sampler | None = None, seed: int = 0) -> Any:
    """The model, read out by a sampler (one call for the posterior mean by default), as `deepinv.models.Reconstructor`.

    `reconstructor(v, physics)` takes and gives images in [0, 1]; the noise level is that of `physics.noise_model`.
    """
    return _reconstructor_type()(model, MMSE() if sampler is None else sampler, seed)


class DeepinvOperator(LinearOperator):
    """See `from_deepinv`."""

    kind: ClassVar[str] = "deepinv"

    def __init__(self, physics: Any, img_size: Sequence[int]) -> None:
        shape = checked_image_shape(img_size)
        # deepinv's calls may change the parameters that they are handed.
        physics = physics.clone()
        super().__init__(1, shape, _measurement_shape(physics, shape))
        self.physics = physics
        if isinstance(physics, nn.Module):
            tensors = (*physics.buffers(), *physics.parameters())
            self.to(next((t.device for t in tensors), torch.device("cpu")))
        self._own_adjoint = self._is_adjoint()
        self._exact = self._is_exact()

    @property
    def tier(self) -> Tier:
        return "exact" if self._exact else "iterative"

    @property
    def has_spectrum(self) -> bool:
        return self._exact

    def _forward(self, x: Tensor) -> Tensor:
        return self._over_stack(self.physics.A, x, 3)

    def _adjoint(self, y: Tensor) -> Tensor:
        if not self._own_adjoint:
            return super()._adjoint(y)
        return self._over_stack(self.physics.A_adjoint, y, len(self.measurement_shape))

    def _pinv(self, y: Tensor) -> Tensor:
        if not self._exact:
            return super()._pinv(y)
        return self._over_stack(self.physics.A_dagger, y, len(self.measurement_shape))

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        if not self._exact:
            return super()._spectral(y, gain)
        return self._over_stack(lambda v: self._filtered(v, len(y), gain), y, len(self.measurement_shape))

    def _filtered(self, v: Tensor, n: int, gain: Gain) -> Tensor:
        """U gain(|q|) U^T v for measurements v of n samples, each with its stack of them."""
        mask = self.physics.mask
        coordinates = self.physics.U_adjoint(v)
        q = torch.as_tensor(mask, device=v.device).abs().to(v.dtype).expand(coordinates[:1].shape)
        kept = q > 1e-5
        factors = gain(q.where(kept, 1).expand(n, *q.shape[1:])) * kept
        repeated: Tensor = self.physics.U(coordinates * factors.repeat_interleave(len(v) // n, dim=0))
        return repeated

    @staticmethod
    def _over_stack(function: Any, value: Tensor, n_axes: int) -> Tensor:
        lead = value.shape[: value.ndim - n_axes]
        result: Tensor = function(value.reshape(-1, *value.shape[len(lead) :]))
        return result.reshape(*lead, *result.shape[1:])

    def _is_adjoint(self) -> bool:
        x, y = self._probes()
        with torch.no_grad():
            seen, image = self.physics.A(x), self.physics.A_adjoint(y)
        error = ((seen * y).sum() - (x * image).sum()).abs()
        return bool(error <= TOLERANCE * (seen.norm() * y.norm()).clamp(min=1e-12))

    def _is_exact(self) -> bool:
        """Whether deepinv's singular values give a pseudo-inverse: H H_pinv H = H and H_pinv H H_pinv = H_pinv."""
        if not all(hasattr(self.physics, name) for name in ("U", "U_adjoint", "V", "V_adjoint", "mask")):
            return False
        x, y = self._probes()
        A, A_dagger = self.physics.A, self.physics.A_dagger
        try:
            with torch.no_grad():
                seen, image = A(x), A_dagger(y)
                pairs = (
                    (A(A_dagger(seen)), seen),
                    (A_dagger(A(image)), image),
                    (self._filtered(seen, 1, torch.ones_like), seen),
                )
        except (RuntimeError, TypeError, ValueError):
            return False
        return all(bool((a - b).norm() <= TOLERANCE * b.norm().clamp(min=1e-12)) for a, b in pairs)

    def _probes(self) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(0)
        x, y = (torch.randn(1, *s, generator=draws) for s in (self.image_shape, self.measurement_shape))
        return x.to(self.device), y.to(self.device)

    def to_spec(self) -> dict[str, Any]:
        raise OperatorError("a physics of deepinv cannot be written down as a spec: save it with deepinv")

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """The same physics, which serves every sample alike, for another batch."""
        twin = copy.copy(self)
        twin.__dict__ = {
            k: v for k, v in self.__dict__.items() if not isinstance(getattr(type(self), k, None), derived)
        }
        twin._buffers = dict(tensors)
        twin.batch_size = len(tensors["placeholder"])
        return twin

    def _signature(self) -> tuple[Any, ...]:
        return (*super()._signature(), id(self.physics))


def _measurement_shape(physics: Any, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """(*M) of a physics that is one linear map for all images; raises `OperatorError` for others."""
    name = type(physics).__name__
    tensors = (*physics.buffers(), *physics.parameters()) if isinstance(physics, nn.Module) else ()
    device = next((t.device for t in tensors), torch.device("cpu"))
    a, b = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.no_grad():
            seen, other, both = physics.A(a), physics.A(b), physics.A(2 * a - 3 * b)
            alone, swapped = physics.A(a[:1]), physics.A(a.flip(0))
    except InvFusionError:
        raise
    except Exception as problem:
        raise OperatorError(f"the physics {name} fails on two images {shape}: {problem}") from problem
    if not isinstance(seen, Tensor) or not seen.is_floating_point():
        raise OperatorError(f"the physics {name} must give one tensor of real numbers, got {type(seen).__name__}")
    expected = 2 * seen - 3 * other
    if len(seen) != 2 or not bool((both - expected).norm() <= 1e-3 * expected.norm() + 1e-6):
        raise OperatorError(f"the physics {name} is not one linear map per image")
    if len(alone) != 1 or not torch.allclose(swapped.flip(0), seen, rtol=1e-3, atol=1e-4):
        raise OperatorError(f"the physics {name} has parameters of their own for each sample: hand in one per sample")
    return tuple(seen.shape[1:])


def _imported(module: str) -> Any:
    """A module of deepinv; raises `OperatorError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise OperatorError(
            f"deepinv cannot be imported ({problem}): pip install -e '.[deepinv]' in invfusion's repository"
        ) from problem


@cache
def _physics_type() -> Any:
    """The class that `to_deepinv` makes; its base exists only where deepinv is installed."""
    physics = _imported("deepinv.physics")

    class OperatorPhysics(physics.LinearPhysics):  # type: ignore[misc, name-defined]
        """An InvFusion operator as deepinv sees it."""

        def __init__(self, operator: LinearOperator, noise_model: Any) -> None:
            noise = physics.ZeroNoise() if noise_model is None else noise_model
            super().__init__(img_size=operator.image_shape, noise_model=noise)
            self.operator = operator

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return self.operator.H(x)

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return self.operator.H_adjoint(y)

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
            return self.operator.H_pinv(y)

        def prox_l2(self, z: Tensor, y: Tensor, gamma: Tensor | float, **_: Any) -> Tensor:
            """argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2 = z + A^T (A A^T + 1/gamma)^-1 (y - A z)."""
            level = torch.as_tensor(gamma, dtype=z.dtype, device=z.device).reshape(-1).reciprocal()
            z = z.expand(len(y), *z.shape[1:])
            return z + self.operator.H_adjoint(self.operator.damped_inverse(y - self.operator.H(z), level))

    return OperatorPhysics


@cache
def _reconstructor_type() -> Any:
    """The class that `to_deepinv_reconstructor` makes."""
    models = _imported("deepinv.models")

    class InvFusionReconstructor(models.Reconstructor):  # type: ignore[misc, name-defined]
        """A model of ours that restores what a physics measured."""

        def __init__(self, model: DenoiserLike, sampler: Sampler, seed: int) -> None:
            super().__init__()
            self.model, self.sampler, self.seed = model, sampler, seed

        def forward(self, y: Tensor, physics: Any, **_: Any) -> Tensor:
            operator = getattr(physics, "operator", None)
            if not isinstance(operator, LinearOperator):
                operator = from_deepinv(physics, physics.img_size or self.model.image_shape)  # type: ignore[attr-defined]
            sigma = getattr(physics.noise_model, "sigma", 0.0)
            measurement = measurement_from_deepinv(y, operator, operator.image_shape, sigma)
            return image_to_deepinv(self.sampler.sample(self.model, measurement, seed=self.seed).x)

    return InvFusionReconstructor
