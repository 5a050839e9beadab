"""`check_operator` finds each way of breaking the contract, and says which."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor

from invfusion.operators import LinearOperator, StridedConvolution, check_operator


class Gains(LinearOperator):
    """A user's operator, not registered: each sample's pixels are scaled; zero gains are lost."""

    kind: ClassVar[str] = "gains"

    def __init__(self, gains: Tensor) -> None:
        super().__init__(len(gains), (1, 2, 2), (1, 2, 2))
        self.register_buffer("gains", gains)

    def _times(self, value: Tensor, factor: Tensor) -> Tensor:
        shape = (self.batch_size, *[1] * (value.ndim - 4), 1, 2, 2)
        return (value * factor.view(shape)).to(value.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return self._times(x, self.gains)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._times(y, self.gains)

    def _pinv(self, y: Tensor) -> Tensor:
        return self._times(y, torch.where(self.gains == 0, 0, 1 / self.gains))

    @property
    def norm(self) -> Tensor:
        return self.gains.abs().flatten(1).amax(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        return {"gains": self.gains}

    @classmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        return cls(tensors["gains"])


class WrongAdjoint(Gains):
    def _adjoint(self, y: Tensor) -> Tensor:
        return 1.01 * super()._adjoint(y)


class ApproximatePinv(Gains):
    def _pinv(self, y: Tensor) -> Tensor:
        return self._times(y, self.gains / (self.gains**2 + 1e-3))


class LeakyPinv(Gains):
    """Satisfies H H_pinv H = H, but puts something where nothing was measured."""

    def _pinv(self, y: Tensor) -> Tensor:
        return super()._pinv(y) + self._times(y, (self.gains == 0).to(y.dtype))


class Affine(Gains):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x) + 0.1


class WrongNorm(Gains):
    @property
    def norm(self) -> Tensor:
        return 1.1 * super().norm


class MixesTheBatch(Gains):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x) + 0.01 * x.mean(dim=0, keepdim=True)


class FixedRank(Gains):
    def _forward(self, x: Tensor) -> Tensor:
        return x * self.gains


class CutsTheGraph(Gains):
    def _pinv(self, y: Tensor) -> Tensor:
        return super()._pinv(y).detach()


class Promotes(Gains):
    def _times(self, value: Tensor, factor: Tensor) -> Tensor:
        return super()._times(value.float(), factor)


class Remembers(Gains):
    calls = 0

    def _forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super()._forward(x) * (1 + 1e-6 * self.calls)


class ForgetsOnTheWay(Gains):
    @classmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        return cls(tensors["gains"].round())


class Raises(Gains):
    def _pinv(self, y: Tensor) -> Tensor:
        raise RuntimeError("no inverse today")


def gains() -> Tensor:
    values = 0.3 + torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    values[:, :, 0, 1] = 0
    return values


def failed(operator: LinearOperator) -> set[str]:
    return {finding.name for finding in check_operator(operator).failures}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sound_operator_of_a_user_passes(dtype: torch.dtype) -> None:
    report = check_operator(Gains(gains()).to(dtype))
    assert report.passed, str(report)
    assert "keeps its contract" in str(report)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (WrongAdjoint, {"adjoint"}),
        (ApproximatePinv, {"Penrose 1", "Penrose 2"}),
        (LeakyPinv, {"Penrose 2"}),
        (Affine, {"linearity"}),
        (WrongNorm, {"norm"}),
        (MixesTheBatch, {"batch independence"}),
        (FixedRank, {"stack axes"}),
        (CutsTheGraph, {"derivatives"}),
        (Promotes, {"float64"}),
        (Remembers, {"repeatability"}),
        (ForgetsOnTheWay, {"round trip"}),
        (Raises, {"Penrose 1"}),
    ],
)
def test_each_broken_promise_is_named(broken: type[Gains], expected: set[str]) -> None:
    assert expected <= failed(broken(gains()))


def test_entries_far_from_the_size_of_pixels_are_found() -> None:
    assert failed(Gains(1000 * gains())) == {"scale"}
    assert failed(Gains(gains() / 1000)) == {"scale"}


def test_the_message_says_what_failed_and_by_how_much() -> None:
    failures = "\n".join(map(str, check_operator(WrongAdjoint(gains())).failures))
    assert "adjoint: error 1.0e-02, allowed 1e-04" in failures
    assert "linearity" not in failures
    assert "no inverse today" in str(check_operator(Raises(gains())))


def test_a_spectrum_that_was_converted_instead_of_recomputed_is_found() -> None:
    kernel = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) / 32
    operator = StridedConvolution((1, 8, 8), kernel, stride=2)
    stale = operator.spectra
    assert not check_operator(operator).failures
    operator.double()
    operator.__dict__["spectra"] = stale
    assert "Penrose 1" in failed(operator)
