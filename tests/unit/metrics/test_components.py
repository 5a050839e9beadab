import pytest
import torch

from invfusion.metrics import captured_energy, squared_projections


def test_by_hand() -> None:
    mean = torch.zeros(2, 3, 1, 1)
    truth = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]).view(2, 3, 1, 1)
    components = torch.eye(3)[:2].view(1, 2, 3, 1, 1).expand(2, 2, 3, 1, 1)
    assert squared_projections(mean, truth, components[:, :1]).tolist() == [[9], [0]]
    assert captured_energy(mean, truth, components).tolist() == [1, 0]
    assert captured_energy(mean, truth, components[:, :1]).tolist() == pytest.approx([9 / 25, 0])


def test_no_error_counts_as_captured() -> None:
    x = torch.ones(1, 3, 1, 1)
    assert captured_energy(x, x, torch.eye(3).view(1, 3, 3, 1, 1)).tolist() == [1]
