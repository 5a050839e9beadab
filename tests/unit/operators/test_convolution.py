import pytest
import torch
from scipy.ndimage import convolve

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import StridedConvolution


def random_kernel(h: int, w: int, batch: int = 1) -> torch.Tensor:
    kernel = torch.rand(batch, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize(("h", "w", "stride"), [(8, 8, 2), (8, 12, 4), (9, 15, 3), (7, 5, 1), (16, 8, 8)])
def test_is_the_circular_convolution_kept_at_every_stride_th_pixel(h: int, w: int, stride: int) -> None:
    kernel = random_kernel(h, w)
    x = torch.randn(1, 1, h, w, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = StridedConvolution((1, h, w), kernel, stride, cutoff=0.0)
    # scipy's origin shifts the centre of even kernels; ours lies at (h//2, w//2) as its default does.
    expected = torch.from_numpy(convolve(x[0, 0].numpy(), kernel[0].numpy(), mode="wrap"))[::stride, ::stride]
    torch.testing.assert_close(operator.H(x)[0, 0], expected)


def test_a_centred_point_kernel_does_not_move_the_image() -> None:
    kernel = torch.zeros(1, 8, 6)
    kernel[0, 4, 3] = 1
    x = torch.randn(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(StridedConvolution((3, 8, 6), kernel, stride=2).H(x), x[..., ::2, ::2])


def test_a_constant_image_stays_constant() -> None:
    operator = StridedConvolution((1, 16, 16), random_kernel(16, 16), stride=4)
    y = operator.H(torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64))
    torch.testing.assert_close(y, torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64))


def test_weak_frequencies_are_zero_in_the_operator_itself() -> None:
    smooth = torch.exp(-0.5 * (torch.arange(16.0) - 8) ** 2 / 9)
    kernel = (smooth[:, None] * smooth)[None] / smooth.sum() ** 2
    identity = torch.eye(256).view(1, 256, 1, 16, 16)
    for cutoff in (1e-2, 1e-1):
        operator = StridedConvolution((1, 16, 16), kernel, stride=1, cutoff=cutoff).double()
        values = torch.linalg.svdvals(operator.H(identity.double()).flatten(2)[0])
        alive = values[values > 1e-12]
        assert len(alive) < 256
        assert alive.min() >= cutoff * alive.max()


def test_a_zero_kernel_gives_the_zero_operator() -> None:
    operator = StridedConvolution((1, 4, 4), torch.zeros(1, 4, 4), stride=2)
    assert operator.H_pinv(torch.ones(1, 1, 2, 2)).abs().max() == 0
    assert operator.norm.tolist() == [0.0]


def test_unfit_shapes_and_attributes_are_refused() -> None:
    with pytest.raises(ShapeError, match="stride 3 must divide"):
        StridedConvolution((1, 8, 8), torch.zeros(1, 8, 8), stride=3)
    with pytest.raises(ShapeError, match="kernel"):
        StridedConvolution((1, 8, 8), torch.zeros(1, 8, 4), stride=2)
    with pytest.raises(OperatorError, match="whole number"):
        StridedConvolution.from_tensors((1, 8, 8), {"kernel": torch.zeros(1, 8, 8)}, {"stride": 2.0, "cutoff": 0.1})
