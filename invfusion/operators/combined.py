"""Operators made of operators: one after the other, several of one image, a multiple of one."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import Gain, LinearOperator, Tier
from invfusion.operators.registry import operator_type

# A stranger's spec may nest operators this deep.
MAX_MEMBERS = 16


class Combined(LinearOperator):
    """Operators `members` of one batch. Their tensors are this one's, named `0.mask` and so on."""

    members: torch.nn.ModuleList
    own_attributes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, members: Sequence[LinearOperator], image_shape: Sequence[int], measurement_shape: Sequence[int]
    ) -> None:
        n = max(member.batch_size for member in members)
        super().__init__(n, image_shape, measurement_shape)
        self.members = torch.nn.ModuleList(member.expand(n) for member in members)

    @classmethod
    def check_number(cls, members: Sequence[LinearOperator]) -> None:
        """Raise `OperatorError` where there are none, or too many."""
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise OperatorError(f"operator '{cls.kind}' needs 1 to {MAX_MEMBERS} members, got {len(members)}")

    def tensors(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": t for i, member in enumerate(self.operators) for name, t in member.tensors().items()}

    def attributes(self) -> dict[str, Any]:
        return {
            "members": [
                {"kind": m.kind, "image_shape": list(m.image_shape), "attributes": m.attributes()}
                for m in self.operators
            ]
        }

    @property
    def operators(self) -> list[LinearOperator]:
        return [member for member in self.members if isinstance(member, LinearOperator)]

    def check_values(self) -> None:
        for member in self.operators:
            member.check_values()

    def prepare(self) -> Self:
        for member in self.operators:
            member.prepare()
        return self

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        return self._of(
            [m.with_tensors(own) for m, own in zip(self.operators, _split(tensors, self.operators), strict=True)]
        )

    def _of(self, members: Sequence[LinearOperator]) -> Self:
        """The same combination of other members."""
        return type(self)(members)  # type: ignore[call-arg]

    def _signature(self) -> tuple[Any, ...]:
        return type(self), tuple(member._signature() for member in self.operators), str(self.attributes())

    @classmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        members = _rebuilt(cls.kind, tensors, attributes, allowed={"members", *cls.own_attributes})
        operator = cls(members, *(attributes[name] for name in cls.own_attributes))
        if operator.image_shape != tuple(image_shape):
            raise ShapeError(
                f"the members of '{cls.kind}' take images {operator.image_shape}, not {tuple(image_shape)}"
            )
        return operator


class Composition(Combined):
    """H = members[-1] ... members[0]: each measures, as an image, what the one before it measured.

    Raises `ShapeError` where a measurement is no image of the next operator.
    """

    kind: ClassVar[str] = "composition"

    def __init__(self, members: Sequence[LinearOperator]) -> None:
        self.check_number(members)
        for before, after in pairwise(members):
            if before.measurement_shape != after.image_shape:
                raise ShapeError(
                    f"'{after.kind}' takes images {after.image_shape}, but '{before.kind}' before it measures "
                    f"{before.measurement_shape}"
                )
        super().__init__(members, members[0].image_shape, members[-1].measurement_shape)

    def _forward(self, x: Tensor) -> Tensor:
        for member in self.operators:
            x = member.H(x)
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for member in reversed(self.operators):
            y = member.H_adjoint(y)
        return y


class Stack(Combined):
    """Several measurements of one image: y = those of all members, flattened and joined, (sum of their entries,).

    Raises `ShapeError` where members take different images.
    """

    kind: ClassVar[str] = "stack"

    def __init__(self, members: Sequence[LinearOperator]) -> None:
        self.check_number(members)
        shapes = {member.image_shape for member in members}
        if len(shapes) > 1:
            raise ShapeError(f"stacked operators must take images of one shape, got {sorted(shapes)}")
        size = sum(math.prod(member.measurement_shape) for member in members)
        super().__init__(members, members[0].image_shape, (size,))

    def parts(self, y: Tensor) -> list[Tensor]:
        """The measurement of each member, (B, *K, *M), in y, (B, *K, sum of entries)."""
        pieces = torch.split(y, [math.prod(m.measurement_shape) for m in self.operators], dim=-1)
        return [p.reshape(*y.shape[:-1], *m.measurement_shape) for p, m in zip(pieces, self.operators, strict=True)]

    def _forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        return torch.cat([member.H(x).reshape(*lead, -1) for member in self.operators], dim=-1)

    def _adjoint(self, y: Tensor) -> Tensor:
        images = [member.H_adjoint(part) for member, part in zip(self.operators, self.parts(y), strict=True)]
        return torch.stack(images).sum(dim=0)


class Scaled(Combined):
    """H = factor times one operator: its measurements in other units. As exact as the operator itself."""

    kind: ClassVar[str] = "scaled"
    own_attributes: ClassVar[tuple[str, ...]] = ("factor",)

    def __init__(self, members: Sequence[LinearOperator], factor: float) -> None:
        if len(members) != 1:
            raise OperatorError(f"a scaled operator has one member, got {len(members)}")
        if type(factor) not in (int, float) or not math.isfinite(factor) or factor == 0:
            raise OperatorError(f"the factor of a scaled operator must be finite and not zero, got {factor!r}")
        super().__init__(members, members[0].image_shape, members[0].measurement_shape)
        self.factor = float(factor)

    @property
    def operator(self) -> LinearOperator:
        return self.operators[0]

    @property
    def tier(self) -> Tier:
        return self.operator.tier

    @property
    def has_spectrum(self) -> bool:
        return self.operator.has_spectrum

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator.H(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.H_adjoint(y)

    def _pinv(self, y: Tensor) -> Tensor:
        return self.operator.H_pinv(y) / self.factor

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        return self.operator.spectral(y, lambda q: gain(abs(self.factor) * q))

    def _damped(self, y: Tensor, lam: Tensor) -> Tensor:
        return self.operator.damped_inverse(y, lam / self.factor**2) / self.factor**2

    @property
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        return abs(self.factor) * self.operator.norm

    def attributes(self) -> dict[str, Any]:
        return {**super().attributes(), "factor": self.factor}

    def _of(self, members: Sequence[LinearOperator]) -> Self:
        return type(self)(members, self.factor)


def compose(outer: LinearOperator, *inner: LinearOperator) -> Composition:
    """H = outer inner[0] inner[1] ...: the last operator meets the image first, as in mathematics."""
    return Composition((outer, *inner)[::-1])


def stack(*operators: LinearOperator) -> Stack:
    """All of the operators' measurements of one image."""
    return Stack(operators)


def scaled(operator: LinearOperator, factor: float) -> Scaled:
    """factor * H."""
    return Scaled([operator], factor)


def _split(tensors: dict[str, Tensor], members: Sequence[Any]) -> list[dict[str, Tensor]]:
    """The tensors of each member, from names such as `0.mask`."""
    parts: list[dict[str, Tensor]] = [{} for _ in members]
    for name, tensor in tensors.items():
        number, _, own = name.partition(".")
        if not own or not number.isdecimal() or int(number) >= len(members):
            raise OperatorError(
                f"a combined operator has tensors named by their member, such as '0.mask', got '{name}'"
            )
        parts[int(number)][own] = tensor
    return parts


def _rebuilt(
    kind: str, tensors: dict[str, Tensor], attributes: dict[str, Any], allowed: set[str]
) -> list[LinearOperator]:
    """The members that `tensors` and `attributes` describe; raises `OperatorError` for every other description."""
    members = attributes.get("members")
    if set(attributes) != allowed or not isinstance(members, list) or not 1 <= len(members) <= MAX_MEMBERS:
        raise OperatorError(f"operator '{kind}' needs the attributes {sorted(allowed)}, got {str(attributes)[:80]}")
    operators = []
    for member, own in zip(members, _split(tensors, members), strict=True):
        if not isinstance(member, dict) or set(member) != {"kind", "image_shape", "attributes"}:
            raise OperatorError(f"a member of operator '{kind}' is {{kind, image_shape, attributes}}")
        shape, described = member["image_shape"], member["attributes"]
        if not isinstance(shape, list) or not all(type(n) is int for n in shape) or not isinstance(described, dict):
            raise OperatorError(f"a member of operator '{kind}' needs whole numbers as image_shape, and attributes")
        operators.append(operator_type(member["kind"]).from_tensors(shape, own, described))
    return operators
