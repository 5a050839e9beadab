"""Building blocks against their formulas."""

import math

import torch
from model_helpers import TINY, mask_operator, normal

from invfusion.models.config import LevelConfig
from invfusion.models.feature_degradation import FeatureDegradation
from invfusion.models.hdit import AxialRope, JointAttention, axial_positions, cosine_rotate
from invfusion.models.layers import TokenSplit, depth_to_space, rms_normalise, space_to_depth
from invfusion.operators.base import Measurement
from invfusion.rng import generator


def test_space_to_depth_orders_features_row_column_channel() -> None:
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    tokens = space_to_depth(x, 2)
    assert tokens.shape == (2, 2, 3, 12)
    assert torch.equal(tokens[1, 0, 2], x[1, 0:2, 4:6].flatten())
    assert torch.equal(depth_to_space(tokens, 2), x)


def test_rms_norm_in_float32_statistics() -> None:
    x, scale = normal(2, 5), normal(5, name="scale")
    expected = x * scale / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_normalise(x, scale), expected)
    large = 300 * x.half()  # the mean of squares exceeds float16
    assert rms_normalise(large, scale).isfinite().all()
    assert rms_normalise(large, scale).dtype == torch.float16


def test_split_blends_half_and_half_at_first() -> None:
    split = TokenSplit(8, 4)
    for module in (split, split.proj):
        module.initialise(generator(0, "split"))
    x, skip = normal(1, 2, 2, 8), normal(1, 4, 4, 4, name="skip")
    torch.testing.assert_close(split(x, skip), (skip + depth_to_space(split.proj(x), 2)) / 2)


def test_positions_are_centres_of_square_cells() -> None:
    rows, columns = axial_positions((2, 4), 4, torch.device("cpu"))
    torch.testing.assert_close(columns, torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(rows, torch.tensor([-0.25, 0.25]))


def test_larger_grids_keep_the_pitch_of_training() -> None:
    rows, columns = axial_positions((8, 6), 4, torch.device("cpu"))
    torch.testing.assert_close(rows.diff(), torch.full((7,), 0.5))
    torch.testing.assert_close(columns.diff(), torch.full((5,), 0.5))


def test_rope_follows_the_published_law() -> None:
    rope = AxialRope(3, 64, trained_reach=4)
    rope.initialise(generator(0, "rope"))
    assert rope.frequencies.shape == (3, 8)
    torch.testing.assert_close(rope.frequencies[2, 5], torch.tensor(math.pi * 10 ** ((5 * 3 + 2) / 24)))
    rotation = rope((2, 4))
    x = normal(1, 2, 4, 3, 64)
    out = cosine_rotate(x, torch.full((3,), 10.0), rotation)
    unit = math.sqrt(10) * x / x.norm(dim=-1, keepdim=True)
    angles = torch.cat((-0.25 * rope.frequencies[1], 0.75 * rope.frequencies[1]))
    a, b = unit[0, 0, 3, 1, :16], unit[0, 0, 3, 1, 16:32]
    expected = torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), unit[0, 0, 3, 1, 32:])
    )
    torch.testing.assert_close(out[0, 0, 3, 1], expected, atol=1e-4, rtol=1e-4)


def test_feature_degradation_layer_equals_the_paper_step_by_step() -> None:
    layer = FeatureDegradation(width=24, patch=2, channels=3)
    layer.mix.initialise(generator(0, "mix"))
    image = normal(2, 3, 8, 8)
    operator = mask_operator(2)
    y = operator.H(image)
    tokens = normal(2, 4, 4, 24, name="tokens")
    out = layer.to_tokens(layer(tokens, Measurement(y, operator, torch.zeros(2))))
    stack = depth_to_space(tokens, 2)  # features of a pixel: (stack, colour)
    stack = stack.view(2, 8, 8, 2, 3).permute(0, 3, 4, 1, 2)
    z = torch.cat((y[:, None], operator.H(stack)), dim=1)
    mixed = torch.einsum("oi,bichw->bochw", layer.mix.weight, z) + layer.mix.bias.view(1, 2, 1, 1, 1)
    back = operator.H_pinv(torch.nn.functional.gelu(mixed))
    expected = space_to_depth(back.permute(0, 3, 4, 1, 2).reshape(2, 8, 8, 6), 2)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def test_joint_attention_equals_one_softmax_over_both_key_sets() -> None:
    """A global InvFusion attention block, written out with explicit concatenated keys and values."""
    block = JointAttention(
        TINY.model_copy(update={"patch_size": 2, "levels": (LevelConfig(width=24, depth=1),)}), index=0
    )
    draw = generator(0, "block")
    with torch.no_grad():
        for tensor in block.state_dict().values():
            tensor.normal_(std=0.3, generator=draw)
        block.scale.fill_(3.0)
    image = normal(2, 3, 8, 8)
    operator = mask_operator(2)
    measurement = Measurement(operator.H(image), operator, torch.zeros(2))
    x, cond = normal(2, 4, 4, 24), normal(2, 16, name="cond")
    rotation = block.rope((4, 4))
    xn = block.norm(x, cond)
    degraded = block.degradation(x, measurement)
    yn = block.degradation_norm(block.degradation.to_tokens(degraded), cond)
    heads = lambda t: t.reshape(2, 4, 4, 3, 8)  # noqa: E731
    q, k, v = (heads(t) for t in block.qkv(xn).chunk(3, dim=-1))
    jk = heads(torch.cat((xn, yn), dim=-1) @ block.degradation_key.weight.T)
    q, k, jk = (cosine_rotate(t, block.scale, rotation).flatten(1, 2) for t in (q, k, jk))
    keys = torch.cat((k, jk), dim=1)
    values = torch.cat((v.flatten(1, 2), heads(block.degradation_value(yn)).flatten(1, 2)), dim=1)
    weights = torch.einsum("bqhe,bkhe->bhqk", q, keys).softmax(-1)
    mixed = torch.einsum("bhqk,bkhe->bqhe", weights, values).reshape(2, 4, 4, 24)
    expected = x + block.out(mixed)
    torch.testing.assert_close(block(x, cond, rotation, degraded), expected, atol=1e-5, rtol=1e-4)
