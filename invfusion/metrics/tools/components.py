"""How well predicted principal components describe the actual error of a posterior mean."""

from torch import Tensor


def captured_energy(mean: Tensor, truth: Tensor, components: Tensor) -> Tensor:
    """The fraction of the error's energy within the span of orthonormal directions, (B,) float64 in [0, 1].

    mean, truth: (B, C, H, W); components: (B, K, C, H, W). An image without error counts as captured.
    Source: methods 7.4.
    """
    error = (truth - mean).double().flatten(1)
    energy = error.square().sum(1)
    captured = squared_projections(mean, truth, components).sum(1)
    return (captured / energy.clamp(min=1e-30)).where(energy > 0, 1.0)


def squared_projections(mean: Tensor, truth: Tensor, components: Tensor) -> Tensor:
    """The squared coordinate of the error along each direction, (B, K) float64.

    Its expectation is the posterior variance along that direction.
    """
    error = (truth - mean).double().flatten(1)
    coordinates = (components.double().flatten(2) @ error[:, :, None]).squeeze(2)
    return coordinates.square()
