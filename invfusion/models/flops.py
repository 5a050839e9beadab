"""Floating-point operations of a network, in closed form: a multiplication and its addition are two."""

from invfusion.models.attention import window_of
from invfusion.models.config import DenoiserConfig


def attention_flops(config: DenoiserConfig) -> int:
    """FLOPs of attention in one forward pass of one image: what is needed, whatever a backend computes and masks."""
    total = 0
    for index, level in enumerate(config.levels):
        grid = _grid(config, index)
        window = grid if level.kernel == "global" else window_of(grid, level.kernel)
        n_keys = window[0] * window[1] * (2 if config.has_invfusion_blocks(index) else 1)
        total += _layers(config, index) * 4 * grid[0] * grid[1] * n_keys * level.width
    return total


def forward_flops(config: DenoiserConfig) -> int:
    """FLOPs of the matrix products and attention in one forward pass of one image, measured by a mask.

    The operators themselves are not in it, nor the Gaussian posterior that may surround the network.
    """
    macs = 0
    channels, height, width = config.image_shape
    for index, level in enumerate(config.levels):
        d, joint = level.width, config.has_invfusion_blocks(index)
        rows, columns = _grid(config, index)
        # Per token: queries, keys, values and output 4 d^2, feed-forward 9 d^2; joint keys and values 3 d^2 more.
        layer = rows * columns * d**2 * (16 if joint else 13) + config.mapping_width * d * (3 if joint else 2)
        if joint:
            stack = d // (channels * config.patch_at(index) ** 2)
            layer += channels * height * width * (stack + 1) * stack
        macs += _layers(config, index) * layer
        if index:
            macs += 2 * rows * columns * 4 * config.levels[index - 1].width * d
    n_inputs = 1 if config.variant == "unconditional" else 2
    tokens, patch = _grid(config, 0), config.patch_at(0) ** 2
    macs += tokens[0] * tokens[1] * patch * channels * config.levels[0].width * (n_inputs + 1 + config.n_components)
    return 2 * macs + attention_flops(config)


def activation_numbers(config: DenoiserConfig) -> int:
    """How many numbers one layer of the finest level holds at once for one image: its widest tensors, in inference."""
    rows, columns = _grid(config, 0)
    # The stream and its skip connection, and the feed-forward's two gates of 3 d each.
    return rows * columns * config.levels[0].width * 10


def _layers(config: DenoiserConfig, index: int) -> int:
    return config.levels[index].depth * (1 if index == len(config.levels) - 1 else 2)


def _grid(config: DenoiserConfig, index: int) -> tuple[int, int]:
    patch = config.patch_at(index)
    return config.image_shape[1] // patch, config.image_shape[2] // patch
