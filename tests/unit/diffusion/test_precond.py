"""EDM preconditioning: the identities that define it."""

import torch

from invfusion.diffusion.precond import precondition

SIGMA = torch.tensor([0.002, 0.5, 80.0])


def test_network_input_and_target_have_unit_variance() -> None:
    f = precondition(SIGMA, 0.5)
    s = SIGMA.view(-1, 1, 1, 1)
    torch.testing.assert_close(f.in_**2 * (s**2 + 0.25), torch.ones(3, 1, 1, 1))
    # The target (x0 - skip x) / out of x = x0 + sigma n with std(x0) = 0.5.
    target = ((1 - f.skip) ** 2 * 0.25 + (f.skip * s) ** 2) / f.out**2
    torch.testing.assert_close(target, torch.ones(3, 1, 1, 1))


def test_noise_label_and_precision() -> None:
    f = precondition(SIGMA.double(), 0.5)
    torch.testing.assert_close(f.noise, SIGMA.log() / 4)
    assert all(t.dtype == torch.float32 for t in f)
