"""In-painting from a few visible patches."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.degradations.base import OFFICIAL_BATCH, DegradationFamily, Law, checked_sides
from invfusion.operators.masks import MaskOperator


class PatchInpainting(DegradationFamily):
    """Square patches of one size are visible, each with probability p.

    Per sample, size, p ~ U(0, max_visible) and patches are drawn again until some patch is visible. Sizes are the
    powers of two that divide both sides of the image. Source: paper A.3.1.

    law: "official" draws as the published code does. Size and p are one for a batch, which is drawn again until every
    image of it has a visible patch, and then p ~ N(0, max_visible^2); so large patches hardly ever come. A draw of
    fewer images than the published evaluation's batch is part of such a batch.
    """

    kind: Literal["patch_inpainting"] = "patch_inpainting"
    law: Law = "paper"
    max_visible: float = Field(default=0.1, gt=0, le=1)

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> MaskOperator:
        sides = checked_sides(batch_size, image_shape)
        if self.law == "official":
            batch = self._official(max(batch_size, OFFICIAL_BATCH), sides, generator)
            return MaskOperator(image_shape, batch[:batch_size])
        mask = torch.zeros(batch_size, 1, *sides)
        pending = torch.arange(batch_size)
        while len(pending):
            mask[pending, 0] = self._attempt(len(pending), sides, generator)
            pending = pending[~mask[pending].flatten(1).any(dim=1)]
        return MaskOperator(image_shape, mask)

    def _official(self, n: int, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
        """The masks (n, 1, H, W) of one batch of the published code."""
        sizes = patch_sizes(*sides)
        p = self.max_visible * torch.rand((), generator=generator)
        while True:
            q = sizes[int(torch.randint(len(sizes), (), generator=generator))]
            grid = torch.rand(n, 1, sides[0] // q, sides[1] // q, generator=generator) < p
            if bool(grid.flatten(1).any(dim=1).all()):
                return grid.repeat_interleave(q, dim=2).repeat_interleave(q, dim=3).float()
            p = self.max_visible * torch.randn((), generator=generator)

    def _attempt(self, n: int, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
        """n masks (n, H, W), of which some may show nothing."""
        sizes = patch_sizes(*sides)
        choice = torch.randint(len(sizes), (n,), generator=generator)
        p = self.max_visible * torch.rand(n, 1, 1, generator=generator)
        mask = torch.empty(n, *sides)
        for i, q in enumerate(sizes):
            rows = (choice == i).nonzero()[:, 0]
            grid = torch.rand(len(rows), sides[0] // q, sides[1] // q, generator=generator) < p[rows]
            mask[rows] = grid.repeat_interleave(q, dim=1).repeat_interleave(q, dim=2).float()
        return mask


def patch_sizes(h: int, w: int) -> list[int]:
    """The powers of two that divide both sides: 1, 2, 4, ..., 64 for 64 x 64."""
    return [2**a for a in range(min(h, w).bit_length()) if h % 2**a == 0 and w % 2**a == 0]
