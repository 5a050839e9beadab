"""The learning-rate schedule."""

from math import sqrt


def learning_rate(nimg: int, lr: float, warmup_images: int, decay_start_images: int) -> float:
    """Linear warm-up, constant, then inverse square root (EDM2; methods of the paper, appendix A.1)."""
    warmup = min(nimg / warmup_images, 1.0) if warmup_images else 1.0
    return lr * warmup / sqrt(max(nimg / decay_start_images, 1.0))
