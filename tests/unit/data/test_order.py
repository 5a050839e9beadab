import pytest
import torch

from invfusion.data import indices


def test_each_epoch_shows_every_sample_once() -> None:
    for epoch in range(3):
        assert sorted(indices(7, seed=0, start=7 * epoch, count=7)) == list(range(7))


def test_epochs_and_seeds_differ() -> None:
    first, second = indices(50, 0, 0, 50), indices(50, 0, 50, 50)
    assert first != second
    assert first != indices(50, 1, 0, 50)


@pytest.mark.parametrize("start", [0, 3, 6, 7, 20])
def test_any_part_equals_a_slice_of_the_stream(start: int) -> None:
    assert indices(7, 5, start, 16) == indices(7, 5, 0, 40)[start : start + 16]


def test_order_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = indices(11, 0, 0, 11)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert indices(11, 0, 0, 11) == first


def test_order_is_the_same_on_every_machine() -> None:
    assert indices(10, seed=0, start=0, count=10) == [1, 6, 0, 8, 7, 9, 5, 3, 2, 4]


def test_an_empty_dataset_has_no_order() -> None:
    with pytest.raises(ValueError, match="at least one"):
        indices(0, 0, 0, 1)
