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

    def __init__(self, precision: Tensor, size: tuple[int, int], end: tuple[int, int], beyond: tuple[int, int]) -> None:
        """precision: (..., C, H, W // 2 + 1), the positive half spectrum of a grid of `size` = (H, W). end: the first
        row and column beyond the picture; beyond: how many there are, the grid's first ones following its last.
        """
        self.precision, self.size = precision, size
        # On the device: an index that is moved there each time would be waited for.
        self.rows, self.columns = (
            _following(*line).to(precision.device) for line in zip(size, end, beyond, strict=True)
        )
        self.around = around(size, end, beyond).to(precision)
        # One channel at a time: in double precision all of them would be the most that a large picture takes.
        channels = [_inverses(some, size, beyond) for some in precision.flatten(end_dim=-3)]
        self._across_rows, self._across_columns = (
            torch.stack(inverses).view(*precision.shape[:-2], *inverses[0].shape)
            for inverses in zip(*channels, strict=True)
        )

    @staticmethod
    def entries(precision: Tensor, size: tuple[int, int], beyond: tuple[int, int]) -> int:
        """How many numbers the inverses of all small systems have; precision: (..., C, H, W // 2 + 1)."""
        half = (size[1] // 2 + 1) * beyond[0] ** 2 + (size[0] // 2 + 1) * beyond[1] ** 2
        return half * precision.shape[:-2].numel()

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


def around(size: tuple[int, int], end: tuple[int, int], beyond: tuple[int, int]) -> Tensor:
    """N, (H, W): 1 beyond a picture, 0 in it; arguments as those of `Strips`."""
    mask = torch.zeros(size)
    mask[_following(size[0], end[0], beyond[0])] = 1
    mask[:, _following(size[1], end[1], beyond[1])] = 1
    return mask


def _following(side: int, first: int, n: int) -> Tensor:
    """n places from the first on, around the torus."""
    return torch.arange(first, first + n) % side


def _inverses(precision: Tensor, size: tuple[int, int], beyond: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Those across the rows and across the columns, for one channel's precision (H, W // 2 + 1)."""
    response = torch.fft.irfft2(precision.double(), s=size)
    of_rows = torch.fft.rfft(response[: beyond[0]], dim=-1).T
    of_columns = torch.fft.rfft(response[:, : beyond[1]], dim=-2)
    return _inverse(of_rows, precision.dtype.to_complex()), _inverse(of_columns, precision.dtype.to_complex())


def _inverse(response: Tensor, dtype: torch.dtype) -> Tensor:
    """Of M Hermitian systems of n entries in a row, (M, n, n); response: (M, n), by distance, in double precision."""
    both = torch.cat([response[:, 1:].flip(-1).conj(), response], -1)
    systems = both.unfold(-1, response.shape[-1], 1).flip(-1)
    return torch.cholesky_inverse(torch.linalg.cholesky(systems)).to(dtype)
