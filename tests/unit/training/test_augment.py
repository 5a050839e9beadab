"""The augmentation: exact where it should do nothing, and geometrically right where it does something."""

import math

import pytest
import torch
from tiny import normal
from torch import Tensor

from invfusion.rng import generator
from invfusion.training.augment import augment, warp

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
    out, _ = augment(torch.full((32, 3, 8, 8), 0.7), 1.0, generator(0, "a"))
    torch.testing.assert_close(out, torch.full((32, 3, 8, 8), 0.7))


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
        torch.testing.assert_close(moved, torch.rot90(blob(10, 6), -1, (2, 3)), atol=0.02, rtol=0)

    def test_turning_a_wide_image_keeps_distances(self) -> None:
        angle = math.pi / 6
        c, s = math.cos(angle), math.sin(angle)
        moved = warp(blob(20, 7.5, width=32), affine([[c, -s, 0], [s, c, 0]]))
        assert_spots_agree(moved, blob(15.5 + 4.5 * c, 7.5 + 4.5 * s, width=32))

    def test_the_surroundings_are_mirrored(self) -> None:
        x = torch.linspace(-1, 1, SIZE).expand(1, 1, SIZE, SIZE).contiguous()
        moved = warp(x, affine([[1, 0, 5], [0, 1, 0]]))
        assert moved[0, 0, 8, 5:15] == pytest.approx(x[0, 0, 8, :10], abs=0.05)
        assert moved[0, 0, 8, :4] == pytest.approx(x[0, 0, 8, :5].flip(0)[:4], abs=0.1)
