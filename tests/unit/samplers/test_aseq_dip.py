import pytest
import torch
from gaussian import GaussianDenoiser, way

from invfusion.operators import MaskOperator, Measurement
from invfusion.rng import generator
from invfusion.samplers import ASeqDIP
from invfusion.samplers.aseq_dip import UNet


def smooth_images(n: int) -> torch.Tensor:
    ramp = torch.linspace(-0.8, 0.8, 16)
    images = [0.5 * ramp[:, None] + 0.4 * (k + 1) * ramp[None].cos() - 0.3 for k in range(n)]
    return torch.stack(images)[:, None].repeat(1, 3, 1, 1)


def test_it_fits_the_measurement_and_fills_in_what_is_hidden() -> None:
    """A twelfth of the pixels of a smooth image is hidden, and set to black at the start."""
    x = smooth_images(1)
    mask = (torch.rand(1, 1, 16, 16, generator=generator(0, "mask")) > 1 / 12).float()
    measurement = Measurement.of(x, MaskOperator((3, 16, 16), mask))
    sampler = ASeqDIP(n_outer=60, n_inner=2, lr=3e-3, width=12)
    restored = sampler.sample(GaussianDenoiser(), measurement, torch.zeros_like(x), generators=way(1)).x
    error = (restored - x).square()
    assert float((error * mask).mean()) < 0.01
    hidden = 1 - mask
    black = (-1 - x).square()
    assert float((error * hidden).sum() / (black * hidden).sum()) < 0.2


def test_it_starts_from_the_measurement_in_units_of_0_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    x = smooth_images(1)
    measurement = Measurement.of(x, MaskOperator((3, 16, 16), torch.ones(1, 1, 16, 16)))
    inputs = []
    monkeypatch.setattr(UNet, "forward", lambda self, z: (inputs.append(z), z * self.out.bias.mean().exp())[1])
    output = ASeqDIP(n_outer=1, n_inner=1, lr=1e-9).sample(
        GaussianDenoiser(), measurement, torch.zeros_like(x), generators=way(1)
    )
    torch.testing.assert_close(inputs[0], (x + 1) / 2)
    torch.testing.assert_close(output.x, x)
    assert output.nfe == len(inputs) == 2


def test_weights_come_from_the_generator() -> None:
    one, same, other = (UNet(3, 16, generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(one.out.weight, same.out.weight)
    assert not torch.equal(one.out.weight, other.out.weight)
    assert abs(float(one.down[1][0].weight.detach().std()) - 0.02) < 2e-3
