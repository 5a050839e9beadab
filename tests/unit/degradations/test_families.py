"""The laws of the families, against the paper's description and simulated reference values."""

import pytest
import torch
from pydantic import ValidationError

from invfusion.degradations import FAMILIES, Mixture
from invfusion.degradations.boxes import BoxInpainting, BoxOutpainting, rectangles
from invfusion.degradations.matrix import RandomMatrix
from invfusion.degradations.motion_blur import StridedMotionBlur
from invfusion.degradations.patches import PatchInpainting, patch_sizes
from invfusion.errors import ConfigError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def largest_patch(mask: torch.Tensor) -> int:
    """The largest power of two q for which the (64, 64) mask consists of whole q x q patches."""
    for q in (64, 32, 16, 8, 4, 2):
        blocks = mask.view(64 // q, q, 64 // q, q).sum(dim=(1, 3))
        if bool(((blocks == 0) | (blocks == q * q)).all()):
            return q
    return 1


def test_patches_follow_the_paper_law_at_64_pixels() -> None:
    n = 3000
    mask = PatchInpainting().sample(n, (3, 64, 64), seeded()).mask
    assert bool(mask.flatten(1).any(dim=1).all())
    assert abs(mask.mean().item() - 0.078) < 0.012
    # Reference shares of sizes 1, 2, ..., 64; a draw of one small patch reads as itself at these sizes.
    expected = torch.tensor([0.22, 0.22, 0.21, 0.19, 0.11, 0.04, 0.011])
    sizes = torch.tensor([largest_patch(m) for m in mask[:, 0]])
    shares = torch.tensor([(sizes == 2**a).float().mean() for a in range(7)])
    assert (shares - expected).abs().max() < 0.025


def test_visible_share_is_bounded_where_patches_are_many() -> None:
    visible = PatchInpainting(max_visible=0.3).sample(400, (1, 64, 64), seeded()).mask.flatten(1).mean(dim=1)
    small = visible[visible < 0.35]
    assert 0.1 < small.median() < 0.2


def test_patch_sizes_divide_both_sides() -> None:
    assert patch_sizes(64, 64) == [1, 2, 4, 8, 16, 32, 64]
    assert patch_sizes(48, 64) == [1, 2, 4, 8, 16]
    assert patch_sizes(9, 16) == [1]
    assert patch_sizes(8, 256) == [1, 2, 4, 8]


def test_matrix_rows_have_unit_norm_and_uniform_count() -> None:
    matrix = RandomMatrix().sample(600, (1, 8, 8), seeded()).matrix
    norms = matrix.norm(dim=2)
    rows = (norms > 0).sum(dim=1)
    assert matrix.shape == (600, 128, 64)
    torch.testing.assert_close(norms[norms > 0], torch.ones(int(rows.sum())))
    assert 2 <= rows.min() <= 5
    assert 125 <= rows.max() <= 128
    assert abs(rows.float().mean().item() - 65) < 5
    assert all(bool((n[:m] > 0).all()) for n, m in zip(norms, rows.tolist(), strict=True))
    # The direction of a normal vector is uniform: entries have zero mean and variance 1/D.
    entries = matrix[matrix != 0]
    assert abs(entries.mean().item()) < 1e-3
    assert abs(entries.var().item() * 64 - 1) < 0.01


def test_boxes_have_the_reference_size() -> None:
    boxes = rectangles(6000, (3, 64, 64), seeded())
    rows, columns = boxes[:, 0].amax(dim=2).sum(dim=1), boxes[:, 0].amax(dim=1).sum(dim=1)
    torch.testing.assert_close(boxes.sum(dim=(1, 2, 3)), rows * columns)
    assert rows.min() >= 1
    assert abs(rows.mean().item() - 22) < 0.8
    assert abs(columns.mean().item() - 22) < 0.8
    assert abs(boxes.mean().item() - 0.118) < 0.008


def test_box_inpainting_is_the_complement_of_out_painting() -> None:
    inside = BoxOutpainting().sample(4, (3, 8, 12), seeded()).mask
    outside = BoxInpainting().sample(4, (3, 8, 12), seeded()).mask
    assert torch.equal(inside + outside, torch.ones_like(inside))


def test_stride_is_uniform_and_shared_by_a_draw() -> None:
    strides = [StridedMotionBlur().sample(1, (1, 8, 8), seeded(i)).stride for i in range(150)]
    assert all(35 <= strides.count(s) <= 65 for s in (2, 4, 8))


def test_strides_that_do_not_fit_the_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[8\] .* 4x12"):
        StridedMotionBlur(strides=(2, 8)).sample(1, (3, 4, 12), seeded())


def test_mixture_draws_members_by_weight() -> None:
    members = [FAMILIES["null"](), FAMILIES["box_outpainting"]()]
    even, uneven = Mixture(members=members), Mixture(members=members, weights=[3.0, 1.0])
    g = seeded()
    for mixture, share in ((even, 0.5), (uneven, 0.75)):
        kinds = [mixture.sample(1, (1, 2, 2), g).kind for _ in range(600)]
        assert abs(kinds.count("null") / 600 - share) < 0.06


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (PatchInpainting, {"max_visible": 0}),
        (RandomMatrix, {"min_rows": 9, "max_rows": 8}),
        (StridedMotionBlur, {"strides": []}),
        (StridedMotionBlur, {"intensity": (0.7, 0.2)}),
        (Mixture, {"members": []}),
        (Mixture, {"members": [{"kind": "null"}], "weights": [1.0, 1.0]}),
        (Mixture, {"members": [{"kind": "null"}], "weights": [0.0]}),
        (Mixture, {"members": [{"kind": "nul"}]}),
    ],
)
def test_senseless_parameters_are_refused(family: type, fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        family(**fields)


class TestOfficialLaw:
    """What the published code draws, against a simulation of its description."""

    def test_patches_as_in_its_evaluation_are_small(self) -> None:
        family = PatchInpainting(law="official")
        draws = torch.cat([family.sample(1, (3, 64, 64), seeded(i)).mask for i in range(300)])
        sizes = torch.tensor([largest_patch(m) for m in draws[:, 0]])
        shares = torch.tensor([(sizes == 2**a).float().mean() for a in range(7)])
        expected = torch.tensor([0.31, 0.29, 0.26, 0.13, 0.006, 0, 0])
        assert (shares - expected).abs().max() < 0.08
        assert draws.mean().item() == pytest.approx(0.076, abs=0.01)

    def test_a_batch_shares_size_and_share(self) -> None:
        mask = PatchInpainting(law="official").sample(48, (3, 64, 64), seeded()).mask
        assert bool(mask.flatten(1).any(dim=1).all())
        # A draw of one small patch reads as itself.
        assert len({largest_patch(m) for m in mask[:, 0]}) == 1
        assert not torch.equal(mask[0], mask[1])

    def test_a_batch_shares_one_kernel_of_half_the_image_and_measures_spectra(self) -> None:
        blur = StridedMotionBlur(law="official", strides=(4,)).sample(3, (3, 64, 64), seeded())
        kernel = blur.tensors()["kernel"]
        assert blur.kind == "published_blur"
        assert kernel.shape[-2:] == (32, 32)
        assert torch.equal(kernel[0], kernel[2])
        assert kernel[0].sum().item() == pytest.approx(1, abs=1e-5)
        assert blur.measurement_shape == (3, 32, 32, 2)

    def test_the_papers_law_is_the_default_and_says_so(self) -> None:
        laws = [StridedMotionBlur(), PatchInpainting(), PatchInpainting(law="official"), RandomMatrix()]
        assert [law.is_official for law in laws] == [False, False, True, True]
        assert Mixture(members=laws[2:]).is_official
        assert not Mixture(members=laws).is_official, "nor is a mixture with any member that is not"
