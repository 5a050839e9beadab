"""The augmentation: exact where it should do nothing, and geometrically right where it does something."""

import math

import pytest
import torch
from tiny import normal
from torch import Tensor

from invfusion.rng import generator
from invfusion.training.augment import _draw, augment, warp

SIZE = 16


def blob(column: float, row: float, width: int = SIZE, height: int = SIZE) -> Tensor:
    """A smooth spot, (1, 1, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (-((columns - column) ** 2 + (rows - row) ** 2) / 8).exp()[None, None]


def assert_spots_agree(moved: Tensor, expected: Tensor) -> None:
    """Where the spot is; beside it, its mirror images may come into view."""
    spot = expected > 0.1
    torch.testing.assert_close(moved[spot], expected[spot], atol=0.02, rtol=0)


def affine(rows: list[list[float]]) -> Tensor:
    return torch.tensor([[*rows, [0.0, 0.0, 1.0]]])


def test_probability_zero_is_the_identity_without_labels() -> None:
    x = normal(4, 3, 8, 8)
    out, labels = augment(x, 0.0, generator(0, "a"))
    assert out is x
    assert labels is None


def test_only_mirroring_where_nothing_else_is_drawn() -> None:
    x = normal(64, 3, 8, 8)
    out, labels = augment(x, 1e-9, generator(0, "a"))
    assert labels is not None
    mirrored = labels[:, 0] == 1
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(out[mirrored], x[mirrored].flip(3))
    assert torch.equal(out[~mirrored], x[~mirrored])
    assert bool((labels[:, 1:] == 0).all())


def test_everything_at_once_is_finite_and_labelled() -> None:
    x = normal(256, 3, 8, 8).clip(-1, 1)
    out, labels = augment(x, 1.0, generator(0, "a"))
    assert labels is not None
    assert out.shape == x.shape
    assert labels.shape == (256, 9)
    assert bool(torch.isfinite(out).all() and torch.isfinite(labels).all())
    assert out.abs().max() < 3
    # y-flips: half of the gated ones; scale, stretch and shifts: standard normal.
    assert labels[:, 1].mean() == pytest.approx(0.5, abs=0.1)
    assert labels[:, [2, 7, 8]].std(0) == pytest.approx(torch.ones(3), abs=0.15)
    assert (labels[:, 3] + 1).square() + labels[:, 4].square() == pytest.approx(torch.ones(256), abs=1e-5)


def test_rare_augmentations_are_rare() -> None:
    _, labels = augment(normal(4000, 1, 8, 8), 0.12, generator(0, "a"))
    assert labels is not None
    rates = (labels != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])
    assert rates == pytest.approx(expected, abs=0.02)


def test_it_is_a_function_of_the_generator() -> None:
    x = normal(8, 3, 8, 8)
    assert torch.equal(augment(x, 0.5, generator(0, "a"))[0], augment(x, 0.5, generator(0, "a"))[0])


def test_constant_images_stay_constant() -> None:
    out, _ = augment(torch.full((32, 1, 64, 64), 0.7), 0.5, generator(0, "a"))
    torch.testing.assert_close(out, torch.full((32, 1, 64, 64), 0.7))


def test_an_images_result_does_not_depend_on_its_neighbours() -> None:
    x = normal(4, 3, 8, 8)
    maps = torch.eye(3).repeat(4, 1, 1) + 0.1 * normal(4, 3, 3, name="maps") * torch.tensor([[1], [1], [0]])
    together = warp(x, maps)
    for i in range(4):
        torch.testing.assert_close(warp(x[i : i + 1], maps[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)


class TestWarp:
    def test_identity(self) -> None:
        torch.testing.assert_close(warp(blob(8.3, 7.1), torch.eye(3)[None]), blob(8.3, 7.1), atol=1e-3, rtol=0)

    @pytest.mark.parametrize("shift", [(2.0, -1.0), (0.5, 0.25), (-1.3, 2.7)])
    def test_translation(self, shift: tuple[float, float]) -> None:
        moved = warp(blob(8, 7), affine([[1, 0, shift[0]], [0, 1, shift[1]]]))
        assert_spots_agree(moved, blob(8 + shift[0], 7 + shift[1]))

    def test_quarter_turn(self) -> None:
        moved = warp(blob(10, 6), affine([[0, -1, 0], [1, 0, 0]]))
        torch.testing.assert_close(moved, torch.rot90(blob(10, 6), -1, (2, 3)), atol=0.03, rtol=0)

    def test_turning_a_wide_image_keeps_distances(self) -> None:
        angle = math.pi / 6
        c, s = math.cos(angle), math.sin(angle)
        moved = warp(blob(20, 7.5, width=32), affine([[c, -s, 0], [s, c, 0]]))
        assert_spots_agree(moved, blob(15.5 + 4.5 * c, 7.5 + 4.5 * s, width=32))

    def test_the_surroundings_are_mirrored(self) -> None:
        x = torch.linspace(-1, 1, SIZE).expand(1, 1, SIZE, SIZE).contiguous()
        moved = warp(x, affine([[1, 0, 5], [0, 1, 0]]))
        assert moved[0, 0, 8, 5:15] == pytest.approx(x[0, 0, 8, :10], abs=0.01)
        assert moved[0, 0, 8, :5] == pytest.approx(x[0, 0, 8, 1:6].flip(0), abs=0.02), "the edge is not repeated"


# EDM's published formulas, written out one number at a time.

HZ = [0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
      0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
      0.0017677118642428036, -0.007800708325034148]  # fmt: skip


def edm_inverse_map(labels: Tensor, size: int, sign: int = 1) -> Tensor:
    """From a place in the output to one in the input, in pixels around the centre, of EDM's labels: in the order in
    which EDM multiplies, scale 2^0.2w, rotation, stretch along an axis, translation by an eighth of the side. A stretch
    along an axis and a squeeze along the opposite one have equal labels; sign tells which."""
    scale, cosine, sine = 2 ** (0.2 * labels[2]), labels[3] + 1, labels[4]
    stretch = sign * labels[5:7].norm()
    cos_r, sin_r = (labels[5:7] / stretch).tolist() if stretch else (1.0, 0.0)
    isotropic = torch.diag(torch.tensor([1 / scale, 1 / scale, 1.0]))
    # rotate2d_inv(-w): the matrix of a rotation by w.
    turn = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    inwards = torch.tensor([[cos_r, sin_r, 0], [-sin_r, cos_r, 0], [0, 0, 1]])
    squeeze = torch.diag(torch.tensor([2 ** (-0.2 * stretch), 2 ** (0.2 * stretch), 1.0]))
    shift = torch.eye(3)
    shift[:2, 2] = -0.125 * size * labels[7:9]
    return (isotropic @ turn @ inwards @ squeeze @ inwards.T @ shift).double()


def edm_resampled(image: Tensor, inverse: Tensor) -> Tensor:
    """One channel (n, n), mirrored without its edges, up by sym6, bilinear, down by sym6."""
    n, m = len(image), len(image) - 1
    mirrored = [abs(i) if i <= m else 2 * m - i for i in range(-m, 2 * m + 1)]
    padded = image.double()[mirrored][:, mirrored]
    size = len(padded)
    place = torch.arange(2 * size)[:, None] - 2 * torch.arange(size)[None]
    taps = torch.tensor(HZ, dtype=torch.float64)
    up = torch.where((place >= -5) & (place <= 6), taps[(place + 5).clamp(0, 11)], 0.0)
    fine = up @ padded @ up.T
    outer = 2 * (n + 6)
    read = torch.zeros(outer, outer, dtype=torch.float64)
    for row in range(outer):
        for column in range(outer):
            x, y = (i + 0.5 - outer / 2 + 0.5 for i in (column, row))
            back = inverse @ torch.tensor([x / 2, y / 2, 1], dtype=torch.float64)
            u, v = (2 * float(back[i]) - 0.5 + size - 0.5 for i in (0, 1))
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                r, c = math.floor(v) + i, math.floor(u) + j
                if 0 <= r < 2 * size and 0 <= c < 2 * size:
                    read[row, column] += (1 - abs(v - r)) * (1 - abs(u - c)) * fine[r, c]
    place = torch.arange(outer)[None] - 2 * torch.arange(3, n + 3)[:, None] + 5
    down = torch.where((place >= 0) & (place <= 11), taps[place.clamp(0, 11)], 0.0)
    return down @ read @ down.T


@pytest.mark.parametrize("which", ["turn", "stretch", "all", "shift"])
def test_it_is_edms_number_by_number(which: str) -> None:
    keeps = {"turn": [3, 4], "stretch": [5, 6], "shift": [7, 8], "all": [2, 3, 4, 5, 6, 7, 8]}[which]
    labels = torch.tensor([0.0, 0.0, 0.6, math.cos(0.7) - 1, math.sin(0.7), 0.9, -0.5, 0.4, -0.3])
    chosen = torch.zeros(9)
    chosen[keeps] = labels[keeps]
    inverse = edm_inverse_map(chosen, SIZE)
    x = normal(1, 1, SIZE, SIZE)
    # The margin that EDM mirrors is as wide as is needed; here, as wide as it can be.
    expected = edm_resampled(x[0, 0], inverse)
    found = warp(x, torch.linalg.inv(inverse)[None].float())[0, 0].double()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_labels_name_edms_maps() -> None:
    _, maps, labels = _draw(64, (SIZE, SIZE), 0.7, generator(0, "labels"))
    for own, found in zip(labels, torch.linalg.inv(maps.double()), strict=True):
        expected = [edm_inverse_map(own, SIZE, sign) for sign in (1, -1)]
        assert min(float((found - inverse).abs().max()) for inverse in expected) < 1e-5
