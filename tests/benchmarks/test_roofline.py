"""What kernels of the roofline move and multiply, and what cards take for them."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.roofline import CARDS, Card, Kernel, Kernels


def test_products_attention_and_elementwise_kernels_are_counted_and_views_are_not() -> None:
    a, b = torch.empty(4, 8), torch.empty(8, 16, dtype=torch.float32)
    q = torch.empty(1, 2, 32, 8)
    with Kernels() as kernels:
        product = a @ b
        product.view(-1).add(1.0)
        F.scaled_dot_product_attention(q, q, q)
    low = False
    assert kernels.found[Kernel(2 * 4 * 8 * 16, 4 * (4 * 8 + 8 * 16 + 4 * 16), low)] == 1
    assert kernels.found[Kernel(0, 4 * 2 * 64, low)] == 1
    assert max(kernel.flops for kernel in kernels.found) == 4 * 2 * 32 * 32 * 8
    assert kernels.found.total() == 3


def test_a_kernel_takes_the_longer_of_its_arithmetic_and_its_traffic() -> None:
    card = Card(bf16=1e12, fp32=1e11, bandwidth=1e10)
    low, exact = (card.seconds(Kernel(10**12, 1, is_low)) for is_low in (True, False))
    copy = card.seconds(Kernel(1, 10**12, is_low=True))
    assert low < exact < copy
    assert card.seconds(Kernel(10**12, 10**12, is_low=True)) == copy


def test_the_card_that_was_measured_reaches_what_was_measured() -> None:
    assert CARDS["H200"].seconds(Kernel(0, 4_044_000_000_000, is_low=False)) == pytest.approx(1)
    assert CARDS["H200"].seconds(Kernel(668_300_000_000_000, 0, is_low=True)) == pytest.approx(1)
