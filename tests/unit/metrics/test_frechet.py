import pytest
import torch

from invfusion.errors import ShapeError
from invfusion.metrics import FeatureStatistics, frechet_distance, kernel_distance
from invfusion.metrics.tools import frechet as tools
from invfusion.metrics.tools.frechet import frechet, kernel
from invfusion.rng import generator


def normal(n: int, d: int, stream: str) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(0, stream), dtype=torch.float64)


def with_moments(mean: torch.Tensor, covariance: torch.Tensor) -> FeatureStatistics:
    n = 100
    return FeatureStatistics(n, n * mean, (n - 1) * covariance + n * torch.outer(mean, mean))


def test_closed_form_for_commuting_gaussians() -> None:
    """|mu - mu'|^2 + sum (s_i - s'_i)^2 in a shared eigenbasis."""
    basis = torch.linalg.qr(normal(4, 4, "basis")).Q
    s, t = torch.tensor([1.0, 2, 3, 0]).double(), torch.tensor([2.0, 2, 1, 1]).double()
    mu, nu = normal(1, 4, "mu")[0], normal(1, 4, "nu")[0]
    a = with_moments(mu, basis @ torch.diag(s**2) @ basis.T)
    b = with_moments(nu, basis @ torch.diag(t**2) @ basis.T)
    expected = float((mu - nu).square().sum() + (s - t).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_agrees_with_the_matrix_root_where_covariances_do_not_commute() -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg")
    a, b = FeatureStatistics.of(normal(50, 6, "a") @ normal(6, 6, "A")), FeatureStatistics.of(normal(40, 6, "b"))
    root = torch.from_numpy(scipy_linalg.sqrtm((a.covariance @ b.covariance).numpy()).real)
    gap = (a.mean - b.mean).square().sum()
    expected = float(gap + a.covariance.trace() + b.covariance.trace() - 2 * root.trace())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_images_than_features() -> None:
    a = FeatureStatistics.of(normal(10, 30, "few"))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_merged_parts_equal_one_pass() -> None:
    f, g = normal(30, 5, "f"), FeatureStatistics.of(normal(20, 5, "g"))
    whole, merged = FeatureStatistics.of(f), FeatureStatistics.of(f[:7]) + FeatureStatistics.of(f[7:])
    assert frechet_distance(merged, g) == pytest.approx(frechet_distance(whole, g), rel=1e-12)
    torch.testing.assert_close(whole.covariance, torch.cov(f.T))


def test_weights_count_images() -> None:
    f = normal(6, 3, "f")
    weights = torch.tensor([2, 0, 1, 1, 0, 3])
    a, b = FeatureStatistics.of(f, weights), FeatureStatistics.of(f.repeat_interleave(weights, dim=0))
    torch.testing.assert_close(a.covariance, b.covariance)


def test_kernel_distance_by_hand() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [0.0]])
    # k(u, v) = (uv + 1)^3: within a: 1, within b: 1, across: mean of 1, 1, 27, 1.
    assert kernel_distance(a, b) == pytest.approx(1 + 1 - 2 * 7.5)


def test_kernel_distance_is_unbiased() -> None:
    same = [kernel_distance(normal(40, 5, f"a{i}"), normal(30, 5, f"b{i}")) for i in range(200)]
    values = torch.tensor(same)
    assert abs(float(values.mean())) < 3 * float(values.std()) / 200**0.5
    assert float(values.min()) < 0
    assert kernel_distance(normal(40, 5, "a0") + 1, normal(30, 5, "b0")) > 10 * float(values.std())


def test_kernel_distance_leaves_pairs_of_copies_out() -> None:
    a, b = normal(5, 3, "a"), normal(4, 3, "b")
    assert kernel_distance(a, b, torch.ones(5)) == pytest.approx(kernel_distance(a, b))
    weights = torch.tensor([1.0, 1, 1, 1, 0])
    assert kernel_distance(a, b, weights) == pytest.approx(kernel_distance(a[:4], b))


def test_one_image_is_no_set() -> None:
    one, many = normal(1, 3, "one"), normal(5, 3, "many")
    with pytest.raises(ShapeError, match="at least 2 images"):
        frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(many))
    with pytest.raises(ShapeError, match="at least 2 images"):
        kernel_distance(one, many)


@pytest.mark.parametrize("n_features", [3, 40])
def test_both_sides_can_be_resampled(n_features: int) -> None:
    """With fewer features than images, and with more."""
    a, b = normal(9, n_features, "a"), normal(8, n_features, "b")
    w, v = torch.tensor([[2.0, 0, 1, 1, 0, 3, 1, 1, 0]]).double(), torch.tensor([[0.0, 2, 1, 1, 1, 2, 1, 0]]).double()
    copied = [rows.repeat_interleave(counts[0].long(), dim=0) for rows, counts in ((a, w), (b, v))]
    expected = frechet_distance(*map(FeatureStatistics.of, copied))
    assert float(frechet(a, b)(w, v)) == pytest.approx(expected)
    once = [torch.ones(1, len(rows)).double() for rows in (a, b)]
    assert float(kernel(a, b)(*once)) == pytest.approx(kernel_distance(a, b))
    assert float(kernel(a, b)(w, v)) != pytest.approx(kernel_distance(a, b))


def test_methods_share_what_is_needed_of_the_resampled_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = tools._mean_and_root
    monkeypatch.setattr(tools, "_mean_and_root", lambda f, w: made.append(len(f)) or whole(f, w))
    reference, w, v = (
        normal(8, 3, "b"),
        torch.ones(2, 9).double(),
        torch.tensor([[2.0, 0, 1, 1, 1, 1, 1, 1]] * 2).double(),
    )
    for stream in ("a", "c"):
        frechet(normal(9, 3, stream), reference)(w, v)
    assert made.count(len(reference)) == 1
    wide = normal(8, tools.KEPT_FEATURES + 1, "b")
    frechet(normal(9, tools.KEPT_FEATURES + 1, "a"), wide)(w, v)
    assert made.count(len(wide)) == 3
