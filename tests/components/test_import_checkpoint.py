"""A published training state becomes a model of the pipeline: sampled, evaluated, trained on and registered."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import ARCHITECTURE, make_params, read_json, workplace

from components.evaluation.evaluate import evaluate
from components.params import Params
from components.registry.import_checkpoint import import_checkpoint, main
from components.registry.register import register
from components.reporting.experiments import Experiment
from components.training.train import LOGS, MODELS, train
from components.training.zoo import Wanted, Zoo, imported_from
from invfusion.degradations import FAMILIES
from invfusion.errors import CheckpointError
from invfusion.models import build_denoiser, load_denoiser
from invfusion.models.official import official_name
from invfusion.noise import GaussianNoise
from invfusion.rng import generator
from invfusion.samplers import Heun


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """A workplace whose model "invfusion" was imported."""
    with workplace(tmp_path_factory.mktemp("workplace")):
        denoiser = build_denoiser(ARCHITECTURE)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator(0, "shake"))
        ema = {official_name(name): t for name, t in denoiser.state_dict().items()}
        torch.save({"state": {"cur_nimg": 640}, "ema": ema}, "training-state-0000640.pt")
        assert import_checkpoint(Path("training-state-0000640.pt"), "tiny", "invfusion") == MODELS / "invfusion"
        params = make_params()
        settings = {
            "methods": ["H_pinv y", "InvFusion"], "split": "val", "n_images": 8, "n_unconditional": 0,
            "families": [FAMILIES["box_inpainting"]()], "sampler": Heun(n_steps=2), "bootstrap_resamples": 20,
            "calibration_images": 0,
        }  # fmt: skip
        register = params.register_.model_copy(update={"model": "invfusion"})
        yield params.model_copy(
            update={
                "evaluate": params.evaluate.model_copy(update=settings),
                "report": params.report.model_copy(update={"gallery_images": 2}),
                "register_": register,
            }
        )


def test_where_it_came_from(params: Params) -> None:
    facts = read_json(MODELS / "invfusion" / "manifest.json")
    assert (facts["name"], facts["preset"], facts["imported"]["images"]) == ("invfusion", "tiny", 640)
    assert len(facts["imported"]["sha256"]) == 64
    assert (LOGS / "invfusion.csv").read_text() == "nimg,loss,lr,grad_norm\n"


def test_it_is_evaluated(params: Params) -> None:
    evaluate(params)
    records = json.loads(Path("reports/evaluation.json").read_text())
    assert {r["method"] for r in records if r["metric"] == "psnr"} == {"H_pinv y", "InvFusion"}
    assert all(r["value"] is not None for r in records if r["metric"] == "psnr")


@pytest.mark.parametrize("recipe", ["mmse", "finetuned"])
def test_training_goes_on_from_it(params: Params, recipe: str) -> None:
    short = getattr(params.recipes, recipe).model_copy(update={"images": 8, "warmup_images": 0})
    recipes = params.recipes.model_copy(update={recipe: short})
    assert load_denoiser(train(params.model_copy(update={"recipes": recipes}), recipe)).variant == "invfusion"


def test_it_is_registered(params: Params) -> None:
    evaluate(params)
    store = params.runtime.model_copy(update={"mlflow_uri": f"sqlite:///{Path('mlflow.db').absolute()}"})
    registered = register(params.model_copy(update={"runtime": store}))
    assert (registered.version, registered.is_new) == ("1", True)


def test_a_table_takes_it_for_the_network_that_it_is(params: Params) -> None:
    experiment = Experiment(title="One", table="1", dataset="FFHQ64", metrics=["psnr"], groups={"": ["InvFusion"]})
    found, missing = Zoo("one", experiment, params).provide()
    assert found["invfusion"] == MODELS / "invfusion"
    assert "invfusion" not in missing
    assert imported_from(MODELS / "invfusion") == "training-state-0000640.pt"
    other = params.model_copy(update={"model": params.model.model_copy(update={"invfusion_levels": [0]})})
    noisy = params.model_copy(update={"noise": GaussianNoise(sigma_y=0.1)})
    for unlike in (other, noisy):
        found, missing = Zoo("one", experiment, unlike).provide()
        assert "invfusion" not in found
        assert "is not trained" in missing["invfusion"]


def test_it_is_taken_for_a_table_of_the_noise_that_it_is_said_to_have_seen(params: Params, tmp_path: Path) -> None:
    noisy, file = params.model_copy(update={"noise": GaussianNoise(sigma_y=0.1)}), Path("training-state-0000640.pt")
    wanted = Wanted("invfusion", noisy)
    assert not wanted.is_in(import_checkpoint(file, "tiny", "invfusion", tmp_path / "none"))
    assert wanted.is_in(import_checkpoint(file, "tiny", "invfusion", tmp_path / "its own", wanted.params.noise))


def test_nothing_is_written_of_a_wrong_file(params: Params, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="variant 'invfusion', not 'palette'"):
        import_checkpoint(Path("training-state-0000640.pt"), "tiny", "palette")
    assert not (MODELS / "palette").exists()


def test_on_the_command_line_an_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK")
    words = ["x", str(tmp_path / "a.pt"), "--preset", "ffhq64", "--variant", "invfusion"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match=r"^error: .*damaged or truncated.*$"):
        main()
    monkeypatch.setattr("sys.argv", [*words, "--noise", "{kind: gaussian, sigma: 0.1}"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()


def test_the_command_line_says_with_which_noise_it_was_trained(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["training-state-0000640.pt", "--preset", "tiny", "--variant", "invfusion", "--out", "noisy"]
    monkeypatch.setattr("sys.argv", ["x", *words, "--noise", "{kind: gaussian, sigma_y: 0.1}"])
    main()
    assert read_json(Path("noisy/manifest.json"))["noise"] == GaussianNoise(sigma_y=0.1).model_dump(mode="json")
