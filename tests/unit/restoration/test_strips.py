"""What lies beyond a picture on a torus, against matrices."""

import torch
from torch import Tensor

from invfusion.restoration.strips import Strips
from invfusion.rng import generator

SIZE, END, BEYOND = (12, 15), (9, 10), (5, 6)


def strips() -> Strips:
    """Of a spectrum that is not even in either frequency alone, as those of blurs along a diagonal."""
    kernel = torch.zeros(1, *SIZE)
    kernel[0, 0, 0], kernel[0, 1, 1], kernel[0, 2, 3] = 1, 0.5, 0.3
    return Strips(1 / (torch.fft.rfft2(kernel).abs().square() + 0.1), SIZE, END, BEYOND)


def matrix(found: Strips, function: object) -> Tensor:
    """Of a map of the entries beyond the picture."""
    beyond = found.around.flatten().bool()
    basis = torch.eye(len(beyond))[beyond].view(-1, 1, *SIZE)
    return function(basis).flatten(1)[:, beyond].T.double()  # type: ignore[operator]


def test_the_strips_follow_the_picture_around_the_torus() -> None:
    rows, columns = strips().around.bool().all(1), strips().around.bool().all(0)
    assert rows.nonzero().flatten().tolist() == [0, 1, 9, 10, 11]
    assert columns.nonzero().flatten().tolist() == [0, 10, 11, 12, 13, 14]


def test_the_inverse_is_symmetric_and_nearly_that_of_the_precision() -> None:
    found = strips()
    Z, P = matrix(found, found.inverse), matrix(found, found.applied)
    torch.testing.assert_close(Z, Z.T, rtol=0, atol=1e-5)
    root = torch.linalg.cholesky(P)
    shares = torch.linalg.eigvalsh(root.T @ Z @ root)
    assert 0.5 < shares.min() <= shares.max() < 1 + 1e-5
    assert (shares > 0.99).double().mean() > 0.7


def test_nothing_of_the_picture_is_looked_at() -> None:
    found, r = strips(), torch.randn(2, 1, *SIZE, generator=generator(0, "r"))
    torch.testing.assert_close(found.inverse(r), found.inverse(r * found.around))
    assert bool((found.inverse(r)[..., ~found.around.bool()] == 0).all())
