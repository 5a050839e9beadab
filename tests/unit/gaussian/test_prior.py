"""Fitting, files and what is refused."""

from pathlib import Path

import pytest
import torch

from invfusion.errors import CheckpointError, ConfigError
from invfusion.gaussian import GaussianPrior
from invfusion.gaussian.covariance import Coloured, LowRank
from invfusion.gaussian.prior import Form
from invfusion.rng import generator

X = 0.3 * torch.randn(60, 3, 4, 4, generator=generator(0, "x")) + torch.linspace(-0.5, 0.5, 4)


def covariance_of(prior: GaussianPrior) -> torch.Tensor:
    size = prior.mean.numel()
    units = torch.eye(size, dtype=torch.float64).view(size, *prior.image_shape)
    return prior.covariance.filter(units, units.new_zeros(size), lambda c, p: c + 0 * p).flatten(1)


def test_at_full_rank_it_has_the_images_own_moments() -> None:
    prior = GaussianPrior.fit(X)
    flat = X.double().flatten(1)
    torch.testing.assert_close(prior.mean.flatten(), flat.mean(0))
    torch.testing.assert_close(covariance_of(prior), flat.T.cov(correction=0), rtol=0, atol=1e-4)


def test_what_the_rank_leaves_out_is_spread_evenly() -> None:
    prior = GaussianPrior.fit(X, rank=5)
    assert isinstance(prior.covariance, LowRank)
    assert len(prior.covariance.variances) == 5
    torch.testing.assert_close(covariance_of(prior).trace(), X.double().flatten(1).T.cov(correction=0).trace())


@pytest.mark.parametrize("images", [X, X[:10]], ids=["many images", "fewer images than numbers"])
@pytest.mark.parametrize("form", ["full", "coloured"])
def test_the_basis_is_orthonormal(form: Form, images: torch.Tensor) -> None:
    covariance = GaussianPrior.fit(images, rank=8, form=form).covariance
    assert isinstance(covariance, LowRank)
    basis = covariance.flat_basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(8, dtype=torch.float64))


def test_grey_images_vary_in_one_combination_of_the_channels() -> None:
    prior = GaussianPrior.fit(X[:, :1].expand(-1, 3, -1, -1), rank=10, form="coloured")
    assert isinstance(prior.covariance, Coloured)
    assert [len(block.variances) for block in prior.covariance.blocks] == [10, 0, 0]
    same = GaussianPrior.fit(X[:, :1].expand(-1, 3, -1, -1), rank=10)
    torch.testing.assert_close(covariance_of(prior), covariance_of(same), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["full", "coloured", "stationary"])
def test_the_file_holds_everything(form: Form, tmp_path: Path) -> None:
    prior = GaussianPrior.fit(X, rank=7, form=form, data="abc")
    prior.save(tmp_path / "prior.safetensors")
    loaded = GaussianPrior.load(tmp_path / "prior.safetensors")
    assert type(loaded.covariance) is type(prior.covariance)
    assert loaded.data == "abc"
    assert torch.equal(covariance_of(loaded), covariance_of(prior))


def test_too_few_images_for_the_rank() -> None:
    with pytest.raises(ConfigError, match=r"10 images of 48 numbers have at most 9 .* rank is 20"):
        GaussianPrior.fit(X[:10], rank=20)
    with pytest.raises(ConfigError, match="at least two"):
        GaussianPrior.fit(X[:1])
    with pytest.raises(ConfigError, match="finite"):
        GaussianPrior.fit(torch.full((10, 3, 4, 4), float("nan")), rank=2)
    with pytest.raises(ConfigError, match="floor"):
        GaussianPrior.fit(X, floor=0)


def test_a_prior_of_other_images() -> None:
    prior = GaussianPrior.fit(X, rank=3, data="abc")
    prior.check_fits((3, 4, 4), "abc")
    with pytest.raises(ConfigError, match=r"fitted to images \(3, 4, 4\), but the model takes \(3, 8, 8\)"):
        prior.check_fits((3, 8, 8))
    with pytest.raises(ConfigError, match="other images"):
        prior.check_fits((3, 4, 4), "def")


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read as a Gaussian prior"):
        GaussianPrior.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read as a Gaussian prior"):
        GaussianPrior.load(path)
    with pytest.raises(CheckpointError, match="not made of"):
        GaussianPrior.from_tensors({"mean": X[0]})
