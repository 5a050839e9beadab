"""A mixture of families: the training distribution of one model for many degradations."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self, get_args

import torch
from pydantic import Field, SerializeAsAny, model_validator

from invfusion.degradations.base import DegradationFamily
from invfusion.degradations.blurs import DefocusBlur, GaussianBlur
from invfusion.degradations.boxes import BoxInpainting, BoxOutpainting
from invfusion.degradations.cameras import Gray, RandomDownsampling, RandomMosaic
from invfusion.degradations.matrix import RandomMatrix
from invfusion.degradations.motion_blur import StridedMotionBlur
from invfusion.degradations.null import Null
from invfusion.degradations.patches import PatchInpainting
from invfusion.degradations.scribble import Scribble
from invfusion.degradations.sensing import RandomSensing
from invfusion.names import Registry, kind_of
from invfusion.operators.base import LinearOperator
from invfusion.plugins import accepts_plugins

# Being in this union enrols a family everywhere: in params.yaml, in FAMILIES and in the contract tests.
Family = (
    PatchInpainting
    | StridedMotionBlur
    | RandomMatrix
    | BoxOutpainting
    | BoxInpainting
    | Null
    | GaussianBlur
    | DefocusBlur
    | RandomDownsampling
    | RandomMosaic
    | Gray
    | Scribble
    | RandomSensing
)

# A plug-in's family joins by `@FAMILIES.register`.
FAMILIES: Registry[type[DegradationFamily]] = Registry(
    "degradation family", ((kind_of(family), family) for family in get_args(Family))
)
Member = Annotated[
    Annotated[Family, Field(discriminator="kind")], accepts_plugins(FAMILIES, DegradationFamily), SerializeAsAny()
]


class Mixture(DegradationFamily):
    """Each draw takes ONE member, with probability proportional to its weight (default: equal)."""

    kind: Literal["mixture"] = "mixture"
    members: list[Member] = Field(min_length=1)
    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None

    @model_validator(mode="after")
    def _matching_weights(self) -> Self:
        if self.weights is not None and (len(self.weights) != len(self.members) or sum(self.weights) <= 0):
            raise ValueError(f"weights must be {len(self.members)} numbers, one per member, not all of them zero")
        return self

    @property
    def is_nonnegative(self) -> bool:
        return all(member.is_nonnegative for member in self.members)

    @property
    def is_official(self) -> bool:
        return all(member.is_official for member in self.members)

    def law_versions(self) -> dict[str, int]:
        return {kind: version for member in self.members for kind, version in member.law_versions().items()}

    def check(self, image_shape: Sequence[int]) -> None:
        for member in self.members:
            member.check(image_shape)

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> LinearOperator:
        weights = torch.tensor(self.weights or [1.0] * len(self.members), dtype=torch.float64)
        member = self.members[int(torch.multinomial(weights, 1, generator=generator))]
        return member.sample(batch_size, image_shape, generator)


def members_of(degradation: DegradationFamily) -> Sequence[DegradationFamily]:
    """The families that a mixture draws from, or the family itself."""
    return degradation.members if isinstance(degradation, Mixture) else [degradation]
