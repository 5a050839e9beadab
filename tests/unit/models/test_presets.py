"""Presets have the published sizes: parameter counts, and every key and shape of the published state dict."""

import hashlib

import pytest
import torch

from invfusion.errors import ConfigError
from invfusion.models import PRESETS, Denoiser, build_denoiser
from invfusion.models.official import official_name

# Trainable parameters; methods sheet, section 2.8.
COUNTS = {
    ("ffhq64", "invfusion", 0): 375_280_907,
    ("ffhq64", "palette", 0): 305_478_923,
    ("ffhq64", "unconditional", 0): 305_474_315,
    ("ffhq64", "invfusion", 5): 375_303_947,
    ("imagenet64", "invfusion", 0): 375_537_163,
    ("imagenet64", "palette", 0): 305_735_179,
    ("imagenet64", "unconditional", 0): 305_730_571,
    ("ffhq256", "invfusion", 0): 170_422_928,
    ("ffhq256", "palette", 0): 151_892_472,
    ("ffhq256", "unconditional", 0): 151_883_256,
}

# The published code's state dicts: number of entries, and the SHA-256 of the sorted lines "key shape".
STATE_DICTS = {
    ("ffhq64", "invfusion"): (233, "96a94bfeddb905509d996f3cc93fae1146a39d9f8305799880b83934521592bd"),
    ("ffhq64", "unconditional"): (153, "f54d98c23f0f987ad5bdd0926b440df16f617dc8828afa591c7312bad27c484a"),
    ("imagenet64", "invfusion"): (234, "af503cd184996fd789057d22af10492fee83057c88c34e65f889369045e66cfe"),
    ("ffhq256", "invfusion"): (252, "8ca4273c21e4fd6d9e928aa9e1859d9143aa7b6099800c021811025d3f7408c5"),
}


def on_meta(preset: str, variant: str, **overrides: object) -> Denoiser:
    with torch.device("meta"):
        return build_denoiser(preset, variant, **overrides)  # type: ignore[arg-type]


@pytest.mark.parametrize(("preset", "variant", "n_components"), COUNTS)
def test_parameter_counts(preset: str, variant: str, n_components: int) -> None:
    denoiser = on_meta(preset, variant, n_components=n_components)
    assert sum(p.numel() for p in denoiser.parameters()) == COUNTS[preset, variant, n_components]


@pytest.mark.parametrize(("preset", "variant"), STATE_DICTS)
def test_published_keys_and_shapes(preset: str, variant: str) -> None:
    state = on_meta(preset, variant).state_dict()
    lines = sorted((official_name(key), tuple(t.shape)) for key, t in state.items())
    assert len({name for name, _ in lines}) == len(state), "the names are one to one"
    digest = hashlib.sha256("\n".join(f"{name} {shape}" for name, shape in lines).encode()).hexdigest()
    assert (len(lines), digest) == STATE_DICTS[preset, variant]


def test_default_preset_is_small() -> None:
    assert sum(p.numel() for p in build_denoiser("digits16").parameters()) < 4e6


@pytest.mark.parametrize(
    ("preset", "levels"), list({"ffhq64": 3, "imagenet64": 3, "ffhq256": 3, "digits16": 2, "small64": 2}.items())
)
def test_all_levels_that_can_carry_invfusion_blocks(preset: str, levels: int) -> None:
    config = PRESETS[preset]
    assert [config.has_invfusion_blocks(i) for i in range(len(config.levels))] == [
        i < levels for i in range(len(config.levels))
    ]


def test_chosen_levels() -> None:
    config = build_denoiser("digits16", invfusion_levels=[1]).config
    assert [config.has_invfusion_blocks(i) for i in (0, 1)] == [False, True]
    assert build_denoiser("digits16", invfusion_levels=[]).config.invfusion_levels == ()


def test_config_keeps_its_variant() -> None:
    config = PRESETS["digits16"].model_copy(update={"variant": "palette"})
    assert build_denoiser(config).variant == "palette"
    assert build_denoiser(config, "unconditional").variant == "unconditional"


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("ffhq46",), {}, "did you mean 'ffhq64'"),
        (("digits16",), {"image_size": 18}, "18x18 does not divide .* multiples of 4"),
        (("ffhq256",), {"invfusion_levels": [3]}, "level 3 .* width 1536 .* patches 32x32; .* multiple of 3072"),
        (("digits16",), {"invfusion_levels": [2]}, "no level 2"),
        (("digits16",), {"head_dim": 40}, "width 72 is not a multiple of head_dim 40"),
        (("digits16",), {"droput": 0.1}, "did you mean 'dropout'"),
        (("digits16", "pallette"), {}, "variant"),
    ],
)
def test_settings_that_cannot_be(arguments: tuple[str, ...], overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_denoiser(*arguments, **overrides)  # type: ignore[arg-type]
