"""A wrong params.yaml gives one error that names the key and the nearest valid one."""

from pathlib import Path

import pytest

from components.params import load_params
from components.profiles import profile_text
from invfusion.errors import ConfigError

DEFAULT = profile_text("digits16")

WRONG = [
    ("warmup_images: 1600", "warmup_imags: 1600", "train.warmup_imags: unknown key; did you mean 'warmup_images'?"),
    ("strides: [2, 4, 8]", "stride: [2, 4, 8]", "degradation.members.0.stride: unknown key; did you mean 'strides'?"),
    ("kind: matrix", "kind: matrx", "degradation.members.2.kind: unknown kind 'matrx'; did you mean 'matrix'?"),
    ("n_steps: 18", "n_step: 18", "evaluate.sampler.n_step: unknown key; did you mean 'n_steps'?"),
    ("metric: psnr", "metric: pnsr", "tune.metric: unknown metric 'pnsr': did you mean 'psnr'?"),
    ("seed: 0", "seeds: 0", "seeds: unknown key; did you mean 'seed'?"),
    ("seed: 0", "seed: 0\nseed: 1", "duplicate key"),
    ("preset: digits16", "preset: digit16", "model: unknown preset 'digit16'; did you mean 'digits16'?"),
    ("image_size: 16", "image_size: 18", "choose multiples of 4"),
    ("image_size: 16", "image_size: 20", "strides [8]"),
    ("lr: 2.0e-3", "lr: fast", "train.lr: Input should be a valid number"),
    ("sigma_y: [0.0, 0.0]", "sigma_y: [0.3, 0.0]", "noise.sigma_y: a range is [low, high] with low <= high"),
    ("{mmse: invfusion_g, nppc", "{mmse: palette, nppc", None),
    (
        "    - DDRM",
        "    - DDRN",
        "evaluate.methods: unknown method 'DDRN'; did you mean 'DDRM'",
    ),
    (
        "n_steps: 100, zeta: 0.5",
        "n_steps: 100, zetta: 0.5",
        "methods.DPS.sampler.zetta: unknown key; did you mean 'zeta'",
    ),
    (
        "sampler: {kind: mmse}",
        "sampler: {kind: mmse}\n    tuned: {matrix: {sigma: 1.0}}",
        "tuned.matrix: 'sigma' is no",
    ),
    ("    model: palette\n    generates", "    generates", None),
    (
        "    model: unconditional\n    sampler: {kind: ddrm",
        "    sampler: {kind: ddrm",
        "methods.DDRM: the sampler 'ddrm'",
    ),
    ("  noise: {kind: gaussian, sigma_y: 0.0}", "  noise: {kind: poisson, peak: 9}", "leave out matrix, or choose"),
    (
        "models: [unconditional, palette, invfusion, invfusion_g]",
        "models: [palette]",
        "train.distilled.mmse: 'invfusion_g' is not among train.models",
    ),
    ("palette, invfusion,", "palete, invfusion,", "train.models: unknown model 'palete'; did you mean 'palette'?"),
    (
        "{mmse: invfusion_g, nppc",
        "{nppcc: invfusion, nppc",
        "unknown model 'nppcc'; did you mean 'nppc'?",
    ),
    ("{mmse: invfusion_g, nppc", "{unrolled_ddrm: unconditional, nppc", None),
    (
        "{mmse: invfusion_g, nppc",
        "{mmse: unconditional, nppc",
        "'unconditional' is no model that distilled MMSE",
    ),
    (
        "  gaussian_prior: {form: coloured, rank: 256, max_images: 10000}\n",
        "",
        "'invfusion_g' needs the images' Gaussian prior; set data.gaussian_prior",
    ),
    ("preconditioning: edm", "preconditioning: edn", "model.preconditioning: Input should be 'edm' or 'gaussian'"),
    ("n_components: 3", "n_component: 3", "recipes.nppc.n_component: unknown key; did you mean 'n_components'?"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), WRONG, ids=[wrong for _, wrong, _ in WRONG])
def test_a_wrong_file_is_explained(tmp_path: Path, right: str, wrong: str, message: str | None) -> None:
    text = DEFAULT
    assert right in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(right, wrong, 1))
    if message is None:
        load_params(path)
        return
    with pytest.raises(ConfigError) as error:
        load_params(path)
    assert message in str(error.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_params(tmp_path / "params.yaml")


def test_numbers_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULT.replace("lr: 2.0e-3", "lr: 5e-5", 1))
    assert load_params(path).train.lr == 5e-5
