import pytest
import torch
from gaussian import SHAPE, GaussianDenoiser, noise, way

from invfusion.errors import OperatorError
from invfusion.rng import generators, randn
from invfusion.samplers import NPPC


class ComponentDenoiser:
    """Raw, skewed directions of different lengths."""

    def components(self, x, sigma, measurement=None, class_labels=None):
        w = randn((3, *SHAPE), generators(0, "w", range(len(x))))
        return torch.zeros_like(x), w * torch.tensor([0.1, 2.0, 0.5]).view(1, 3, 1, 1, 1)


def test_directions_are_orthonormal_and_sorted_by_std() -> None:
    output = NPPC().sample(ComponentDenoiser(), None, noise(4), generators=way(4))
    flat = output.components.flatten(2)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(3).expand(4, 3, 3), rtol=0, atol=1e-5)
    assert output.stds.shape == (4, 3)
    assert bool((output.stds.diff(dim=1) <= 0).all())
    assert output.nfe == 1
    length = (SHAPE[0] * SHAPE[1] * SHAPE[2]) ** 0.5
    torch.testing.assert_close(output.stds[:, 0], torch.full((4,), 2.0 * length), rtol=0.2, atol=0)


def test_a_model_without_components_is_refused() -> None:
    with pytest.raises(OperatorError, match="'nppc' requires 'components'"):
        NPPC().sample(GaussianDenoiser(), None, noise(2), generators=way(2))
