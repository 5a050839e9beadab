"""What lies beyond a picture on a torus: a strip of rows and one of columns, whose systems are small ones."""

import torch
from torch import Tensor


class Strips:
    """Nearly the inverse of N P N, what a stationary precision P makes of the entries beyond a picture (N keeps these).

    Along a strip P is the same at every place, so a Fourier transform along it leaves one system across it for each
    frequency, which is solved exactly: for the rows, for the columns, and for the rows again. The result is symmetric,
    positive and never more than the inverse, as a preconditioner must be; conjugate gradients need some five steps with
    it where they take a hundred with P^-1. Source: symmetric multiplicative Schwarz methods, Toselli & Widlund 2005,
    chapter 2.
    """

    def __init__(self, precision: Tensor, size: tuple[int, int], end: tuple[int, int], n: tuple[int, int]) -> None:
        """precision: (..., C, H, W // 2 + 1), positive, by frequency, of a grid of `size` = (H, W). end: the first row
        and column beyond the picture; n: how many there are, the grid's first ones following its last.
        """
        self.precision, self.size = precision, size
        self.rows, self.columns = (
            torch.arange(first, first + many, device=precision.device) % of
            for first, many, of in zip(end, n, size, strict=True)
        )
        # 1 beyond the picture, 0 in it: N.
        self.beyond = torch.zeros(size, device=precision.device)
        self.beyond[self.rows] = 1
        self.beyond[:, self.columns] = 1
        response = torch.fft.irfft2(precision.double(), s=size)
        self._across_rows = _inverses(torch.fft.rfft(response[..., : n[0], :], dim=-1).transpose(-2, -1))
        self._across_columns = _inverses(torch.fft.rfft(response[..., : n[1]], dim=-2))

    def inverse(self, r: Tensor) -> Tensor:
        """Of r (B, C, H, W), whose entries in the picture are not looked at; the result is zero there."""
        z = self._by_rows(r)
        z = z + self._by_columns(r - self.applied(z))
        return z + self._by_rows(r - self.applied(z))

    def applied(self, z: Tensor) -> Tensor:
        """P z on the whole grid; z (B, C, h, w) is zero beyond its own entries."""
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(z, s=self.size) * self.precision, s=self.size)
        return filtered

    def _by_rows(self, r: Tensor) -> Tensor:
        z = torch.fft.rfft(r[..., self.rows, :], dim=-1).transpose(-2, -1)
        z = (self._across_rows @ z[..., None])[..., 0].transpose(-2, -1)
        solved = torch.zeros_like(r)
        solved[..., self.rows, :] = torch.fft.irfft(z, n=self.size[1], dim=-1)
        return solved

    def _by_columns(self, r: Tensor) -> Tensor:
        z = torch.fft.rfft(r[..., self.columns], dim=-2)
        z = (self._across_columns @ z[..., None])[..., 0]
        solved = torch.zeros_like(r)
        solved[..., self.columns] = torch.fft.irfft(z, n=self.size[0], dim=-2)
        return solved


def _inverses(response: Tensor) -> Tensor:
    """Of M Hermitian systems of n entries in a row, (..., C, M, n, n); response: (..., C, M, n), by distance."""
    both = torch.cat([response[..., 1:].flip(-1).conj(), response], -1)
    systems = both.unfold(-1, response.shape[-1], 1)
    # One channel at a time: in double precision all of them would be the most that a large picture takes.
    inverses = [_inverse(some) for some in systems.flatten(end_dim=-4)]
    return torch.stack(inverses).view(systems.shape)


def _inverse(systems: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(systems.flip(-1))).to(torch.complex64)
