"""Posterior principal components: the orthonormal directions that an NPPC network predicts (Nehme et al. 2023)."""

import torch
from torch import Tensor

EPSILON = 1e-12


def gram_schmidt(w: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions (B, K, C, H, W) and the lengths (B, K) of the raw ones after orthogonalisation, float32.

    Each direction is made orthogonal to its detached predecessors, so that later ones cannot push earlier ones.
    """
    flat = w.float().flatten(2)
    units: list[Tensor] = []
    lengths: list[Tensor] = []
    for k in range(flat.shape[1]):
        v = flat[:, k]
        for unit in units:
            v = v - (v * unit.detach()).sum(1, keepdim=True) * unit.detach()
        length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        units.append(v / (length + EPSILON))
        lengths.append(length[:, 0])
    return torch.stack(units, dim=1).view(w.shape), torch.stack(lengths, dim=1)
