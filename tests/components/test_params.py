"""A wrong params.yaml gives one error that names the key and the nearest valid one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.device import check_device
from components.params import load_params, pipeline_from
from components.profiles import load_profile, merged, profile_text, profile_values
from invfusion.errors import ConfigError
from invfusion.noise import GaussianNoise

DEFAULT = profile_text("digits16")

WRONG = [
    ("warmup_images: 1600", "warmup_imags: 1600", "train.warmup_imags: unknown key; did you mean 'warmup_images'?"),
    ("strides: [2, 4, 8]", "stride: [2, 4, 8]", "degradation.members.0.stride: unknown key; did you mean 'strides'?"),
    ("kind: matrix", "kind: matrx", "degradation.members.2.kind: unknown kind 'matrx'; did you mean 'matrix'?"),
    (
        "n_steps: 10\n  guidance",
        "n_step: 10\n  guidance",
        "evaluate.sampler.n_step: unknown key; did you mean 'n_steps'?",
    ),
    ("metrics: [psnr]", "metrics: [pnsr]", "tune.metrics.0: unknown metric 'pnsr': did you mean 'psnr'?"),
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
        "sampler: {kind: mmse}\n    tuned: {psnr: {matrix: {sigma: 1.0}}}",
        "tuned.psnr.matrix: 'sigma' is no",
    ),
    ("    model: palette\n    generates", "    generates", None),
    (
        "    model: unconditional\n    sampler: {kind: ddrm",
        "    sampler: {kind: ddrm",
        "methods.DDRM: the sampler 'ddrm'",
    ),
    ("  noise: {kind: gaussian, sigma_y: 0.0}", "  noise: {kind: poisson, peak: 9}", "leave out matrix, or choose"),
    (
        "    share_at_sigma_max: 0.2",
        "    share_at_sigma_max: 0.2\n    noise: {kind: poisson, peak: 9}",
        "recipes.invfusion_g.noise: 'poisson' noise is defined for operators without negative entries",
    ),
    (
        "recipes:\n",
        "recipes:\n  unconditional: {noise: {kind: gaussian, sigma_y: 0.1}}\n",
        "recipes.unconditional.noise: 'unconditional' is trained on no measurements",
    ),
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
    ("{mmse: invfusion_g, nppc", "{unrolled_ddrm: unconditional, mmse: invfusion_g, nppc", None),
    (
        "{mmse: invfusion_g, nppc",
        "{mmse: unconditional, nppc",
        "'unconditional' is no model that distilled MMSE",
    ),
    (
        "  gaussian_prior: {form: coloured, rank: 256, max_images: 10000, clusters: 40}\n",
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


VALUES = profile_values("digits16")
METHODS, FAMILIES = VALUES["evaluate"]["methods"], VALUES["evaluate"]["families"]
MODELS = VALUES["train"]["models"]
CYRILLIC = "P\N{CYRILLIC SMALL LETTER A}lette"
NO_NAME = "cannot name files and metrics"
NO_MODEL = "cannot name a registered model"


def of_method(name: str, **changes: Any) -> dict[str, Any]:
    return {"methods": {name: changes}}


def evaluated(*names: str) -> dict[str, Any]:
    return {"evaluate": {"methods": [*METHODS, *names]}}


# What is known before any training, by what of the default experiment is changed.
KNOWN_BEFORE: list[tuple[dict[str, Any], str]] = [
    (of_method("NPPC", restores=["box_inpaintng"]), "methods.NPPC: restores: unknown degradation family "
     "'box_inpaintng': did you mean 'box_inpainting'?"),
    (of_method("NPPC", restores=["matrix", "matrix"]), "methods.NPPC: restores: 'matrix' stands there 2 times"),
    (of_method("NPPC", restores="al"), "methods.NPPC.restores"),
    (of_method("DDIM", restores=["Matrix"], model="palette"), "did you mean 'matrix'?"),
    (of_method("DPS", tuned={"psnr": {"matrx": {"zeta": 1.0}}}), "DPS: tuned.psnr: unknown degradation family 'matrx'"),
    (of_method("DPS", tuned={"PSNR": {"matrix": {"zeta": 1.0}}}), "unknown metric 'PSNR'"),
    (of_method("DPS", tuned={"psnr": {"matrix": {"zetta": 1.0}}}), "tuned.psnr.matrix: 'zetta' is no setting"),
    ({"evaluate": {"families": [*FAMILIES, {"kind": "matrix", "max_rows": 4}]}}, "evaluate.families: 'matrix' stands "
     "there 2 times; each kind is one column"),
    ({"oracle": {"families": [{"kind": "null"}, {"kind": "null"}]}}, "oracle.families: 'null' stands there 2 times"),
    ({"oracle": {"priors": [VALUES["oracle"]["priors"][0]] * 2}}, "oracle.priors: 'mixture' stands there 2 times"),
    ({"oracle": {"sigma_y": [0.1, 0.1]}}, "oracle.sigma_y: '0.1' stands there 2 times"),
    (evaluated("DDRM"), "evaluate.methods: 'DDRM' stands there 2 times"),
    (evaluated("ddrm"), "evaluate.methods: unknown method 'ddrm'; did you mean 'DDRM'?"),
    (evaluated("Palette "), "evaluate.methods: unknown method 'Palette '; did you mean 'Palette'?"),
    (evaluated(CYRILLIC), "did you mean 'Palette'? It holds CYRILLIC SMALL LETTER A."),
    (evaluated("Palette\u200b"), "did you mean 'Palette'? It holds ZERO WIDTH SPACE."),
    (evaluated("InDI"), "'InDI' needs the model 'indi', which is not trained: put 'indi' into train.models, or take "
     "'InDI' out of evaluate.methods"),
    (evaluated("Unrolled DDRM"), "put 'unrolled_ddrm' into train.distilled"),
    (of_method("palette", model="palette"), "'Palette' and 'palette' would write their pictures into one file"),
    (of_method("H pinv (y)", model="palette"), NO_NAME),
    (of_method("H pinv-y"), "'H_pinv y' and 'H pinv-y' would write their pictures into one file, h_pinv_y: rename one"),
    (of_method("\N{GREEK SMALL LETTER PI}\N{GREEK SMALL LETTER SIGMA}"), "needs a letter from a to z or a digit"),
    *((of_method(name), NO_NAME) for name in ("a/b", "..", "", " DDRM", "DDRM ", "a|b", "a\nb", "x" * 101)),
    (of_method("DDRM", model="uncondtional"), "methods.DDRM.model: unknown trained model 'uncondtional': did you mean "
     "'unconditional'?"),
    (of_method("DDRM", model="palette"), "methods.DDRM: the sampler 'ddrm' uses the measurement itself and needs an"),
    (of_method("Palette", model="unconditional"), "methods.Palette: the sampler 'deis' leaves the measurement"),
    (of_method("Wiener", withheld=True), "withheld: without a model there is nothing to withhold"),
    (of_method("InvFusion", withheld=True), "methods.InvFusion: the sampler 'deis' leaves the measurement"),
    (of_method("NPPC", model="mmse"), "methods.NPPC: the sampler 'nppc' needs principal components, 'mmse' has none"),
    (of_method("MMSE", sampler={"kind": "heun", "n_steps": 8}), "methods.MMSE: 'mmse' is no diffusion model, so the "
     "sampler 'heun' cannot read it out; take 'mmse'"),
    (of_method("Wiener", model="palette"), "the sampler 'wiener' needs a Gaussian prior, 'palette' has none"),
    ({"train": {"models": [*MODELS, "palette"]}}, "train.models: 'palette' stands there 2 times"),
    ({"train": {"models": [*MODELS, "mmse"]}}, "'mmse'; it starts from another model: put it under train.distilled"),
    ({"train": {"distilled": {"palette": "invfusion"}}}, "it starts from fresh weights: put it into train.models"),
    ({"train": {"distilled": {"mmse": "invfusionG"}}}, "train.distilled.mmse: 'invfusionG' is not among train.models"),
    ({"train": {"distilled": {"mmse": "invfusion_G"}}}, "; did you mean 'invfusion_g'?"),
    *(({"register": {"name": name}}, NO_MODEL) for name in ("a/b", "a:b", "a.b", "a%b", "a'b", 'a"b', "", " a", "a@b")),
    ({"register": {"name": "invfusion-history"}}, "is kept for the history of the model 'invfusion'"),
    ({"register": {"model": "invfusionn"}}, "register.model: unknown trained model 'invfusionn': did you"),
    ({"register": {"model": "palette"}}, "register.model: 'palette' is no InvFusion model; choose one of invfusion, "),
    ({"register": {"model": "mmse"}}, "register.model: 'mmse' is no InvFusion model"),
    ({"evaluate": {"methods": ["DDRM"]}}, "register.model: none of evaluate.methods samples 'invfusion_g'"),
    ({"register": {"gates": {"max_calibration_gapp": 1}}}, "max_calibration_gapp: unknown key; did you mean"),
    ({"tune": {"metrics": ["PSNR"]}}, "unknown metric 'PSNR': did you mean 'psnr'?"),
    ({"data": {"name": "a/b"}}, NO_NAME),
    ({"model": {"preset": "Digits16"}}, "did you mean 'digits16'?"),
    ({"plugins": ["my_opz"]}, "the plug-in 'my_opz' is not here"),
    ({"runtime": {"device": "mps"}}, "runtime.device: 'mps' has no double precision"),
    ({"runtime": {"device": "cuda:7"}}, "choose cuda, and the GPU by CUDA_VISIBLE_DEVICES=7 in the environment"),
    ({"runtime": {"device": "Cuda"}}, "'Cuda' is no device; valid are auto, cpu, cuda"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), KNOWN_BEFORE, ids=[message for _, message in KNOWN_BEFORE])
def test_names_are_checked_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        pipeline_from(merged(VALUES, changes), "params.yaml")
    assert message in str(error.value)


def test_all_wrong_names_are_told_at_once() -> None:
    changes = merged(evaluated("ddrm", "DDNN"), {"train": {"models": ["palete", "invfusion_g"]}})
    with pytest.raises(ConfigError, match=r"params.yaml: 3 wrong parameter\(s\)\n  evaluate.*\n  evaluate.*\n  train"):
        pipeline_from(merged(VALUES, changes), "params.yaml")


@pytest.mark.parametrize("name", ["a b", "InvFusion_2", "f\N{LATIN SMALL LETTER U WITH DIAERESIS}r"])
def test_ordinary_names_pass(name: str) -> None:
    changes = {"register": {"name": name}, "data": {"name": f"{name}.v2"}} | of_method(f"{name}: mine")
    assert pipeline_from(merged(VALUES, changes), "params.yaml").register_.name == name


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(DEFAULT.replace("# ", "# \N{LATIN SMALL LETTER U WITH DIAERESIS} ", 1).encode(encoding))
    with pytest.raises(ConfigError, match=r"params\.yaml: not (UTF-8 text \(byte 0x|valid YAML)"):
        load_params(path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(DEFAULT.encode("utf-8-sig"))
    load_params(path)


@pytest.mark.parametrize("content", ["[" * 2_000, "a: &a [*a]", "- a", "", "seed: 0\x00"], ids=["deep", *"abcd"])
def test_a_file_that_holds_no_parameters_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load_params(tmp_path)


@pytest.mark.parametrize(("name", "content"), [
    ("latin", "NAME = 'f\xfcr'\n".encode("latin-1")),
    ("utf16", "import torch".encode("utf-16")),
    ("exits", b"raise RuntimeError('no')"),
])  # fmt: skip
def test_a_plugin_that_python_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"broken_{name}.py").write_bytes(content)
    with pytest.raises(ConfigError, match=f"the plug-in 'broken_{name}' fails on import"):
        pipeline_from(merged(VALUES, {"plugins": [f"broken_{name}"]}), "params.yaml")
    with pytest.raises(ConfigError, match=f"is not here.*did you mean 'broken_{name}'"):
        pipeline_from(merged(VALUES, {"plugins": [f"brokn_{name}"]}), "params.yaml")


def test_a_gpu_that_is_not_there_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    params = pipeline_from(merged(VALUES, {"runtime": {"device": "cuda"}}), "params.yaml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"runtime\.device: 'cuda', but PyTorch finds no GPU here: set it to auto"):
        check_device(params)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(params)


def test_one_model_may_be_trained_with_noise_of_its_own() -> None:
    params = load_profile("digits16")
    own = GaussianNoise(sigma_y=(0.0, 0.2))
    recipes = params.recipes.model_copy(
        update={"invfusion_g": params.recipes.invfusion_g.model_copy(update={"noise": own})}
    )
    changed = params.model_copy(update={"recipes": recipes})
    assert changed.task("invfusion_g").noise == own
    assert changed.task("mmse").noise == own, "it starts from that model"
    assert changed.task("invfusion").noise == params.noise != own
