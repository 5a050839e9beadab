"""Every table and figure of the paper can be made, and says what is missing where it cannot."""

import csv
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from safetensors.torch import save_file
from tiny_training import read_json, workplace
from torch.distributed.run import get_args_parser

from components.data.prior import fit_prior
from components.evaluation import methods, restoring, tune
from components.evaluation.evaluate import Results
from components.params import Params, PriorFitConfig
from components.profiles import load_profile
from components.records import Record
from components.reporting import experiments, table, tables, verdicts
from components.reporting.experiments import ClaimConfig, Experiment, experiment_names, load_experiment
from components.reporting.paper import FILE, Paper
from components.reporting.report import is_invfusion
from components.training import train, zoo
from invfusion.degradations import FAMILIES, Mixture, members_of
from invfusion.diffusion.losses import MMSELoss
from invfusion.errors import CheckpointError, ConfigError, DataError, InvFusionError
from invfusion.metrics import METRICS
from invfusion.names import kind_of
from invfusion.noise import GaussianNoise
from invfusion.rng import generator
from invfusion.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]
FEWEST: dict[str, dict[str, Any]] = {
    "heun": {"n_steps": 2},
    "ddrm": {"n_steps": 2},
    "ddnm": {"n_steps": 2},
    "dps": {"n_steps": 2},
    "pigdm": {"n_steps": 2},
    "daps": {"n_levels": 2, "n_ode_steps": 2, "n_langevin_steps": 2},
    "mgps": {"n_levels": 4, "n_gradient_steps_boosted": 2},
    "indi": {"n_steps": 2},
    "unrolled_ddrm": {"n_steps": 2},
    "aseq_dip": {"n_outer": 1, "n_inner": 1, "width": 4},
}
N = 4
NAMES = [path.stem for path in sorted((ROOT / "experiments").glob("*.yaml"))]


def make_params(**evaluate: Any) -> Params:
    """The project's own parameters with tiny models, few steps and images."""
    base = tiny_training.make_params(images=8, log_images=8, checkpoint_images=8, warmup_images=0)
    chosen = {}
    for name, method in base.methods.items():
        if method.sampler is not None:
            sampler = method.sampler.model_copy(update=FEWEST.get(method.sampler.kind, {}))
            method = method.model_copy(update={"sampler": sampler, "extra_draws": min(method.extra_draws, 1)})
        chosen[name] = method
    small = {"split": "val", "batch_size": N, "bootstrap_resamples": 10, "sampler": base.evaluate.sampler.model_copy(
        update=FEWEST["heun"]
    )}  # fmt: skip
    short = {"images": 8, "warmup_images": 0}
    # All that train for a number of images of their own.
    finetuning = {name: recipe for name, recipe in base.recipes if "images" in type(recipe).model_fields}
    recipes = {name: recipe.model_copy(update=short) for name, recipe in finetuning.items()}
    recipes["unrolled_ddrm"] = recipes["unrolled_ddrm"].model_copy(update={"n_steps": 2})
    values = base.model_copy(
        update={
            "methods": chosen,
            "recipes": base.recipes.model_copy(update=recipes),
            "evaluate": base.evaluate.model_copy(update=small | evaluate),
            "tables": base.tables.model_copy(update={"max_images": N, "tuned": {}}),
            "tune": base.tune.model_copy(update={"n_images": N}),
            "report": base.report.model_copy(update={"gallery_images": 1}),
        }
    ).model_dump(mode="json", by_alias=True)
    for family in [*values["degradation"]["members"], *values["evaluate"]["families"]]:
        family.update({"strided_motion_blur": {"strides": [2]}, "matrix": {"max_rows": 8}}.get(family["kind"], {}))
    return Params.model_validate(values)


def add_classes() -> None:
    """Give the staged noise two classes; its prior is fitted to what it then is."""
    manifest = train.STAGED / "manifest.json"
    manifest.write_text(json.dumps(read_json(manifest) | {"class_names": ["even", "odd"]}))
    for split in ("train", "val"):
        path = train.STAGED / split / f"{split}-000000.json"
        sidecar = read_json(path)
        path.write_text(json.dumps(sidecar | {"labels": [i % 2 for i in range(len(sidecar["keys"]))]}))
    fit_prior(train.STAGED, PriorFitConfig(rank=8))


def shortened(name: str) -> Experiment:
    """An experiment whose curves over steps have as many points, closer to each other; where draws are repeated, one
    family stands for all."""
    experiment = load_experiment(name)
    rows, families = {}, experiment.families[: 1 if experiment.judges_draws else None]
    for key, row in experiment.rows.items():
        steps = row.sampler.get("n_steps", 0)
        fewer = {"n_steps": int(steps).bit_length()} if steps else FEWEST.get(row.sampler.get("kind", ""), {})
        rows[key] = row.model_copy(update={"sampler": row.sampler | fewer})
    return experiment.model_copy(update={"rows": rows, "families": families})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working copy with a small staged dataset that has classes; models and cells are shared by the tests."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    with workplace(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load_experiment", shortened)
        add_classes()
        yield folder


def test_there_is_an_experiment_for_each_table_and_figure(project: Path) -> None:
    tabled = [f"table_{i:02d}" for i in (1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15)]
    assert experiment_names() == [
        "authors",
        "few_step",
        *(f"figure_{i:02d}" for i in (3, 4, 5, 6)),
        "gaussian",
        "nfe",
        "noise_range",
        "one_step",
        *tabled,
        "zero_shot",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_made_of_the_default_parameters(project: Path, name: str) -> None:
    experiment = load_experiment(name)
    changed = experiment.applied(load_profile(), n_classes=2)
    assert changed.evaluate.methods == experiment.names


def test_draws_are_repeated_where_a_metric_judges_them(project: Path) -> None:
    calibration = {
        name: load_experiment(name).applied(load_profile(), n_classes=2).evaluate.calibration_images for name in NAMES
    }
    assert {name for name, n in calibration.items() if n} == {
        "authors",
        "few_step",
        "gaussian",
        "zero_shot",
    }


def test_together_they_exercise_every_method(project: Path) -> None:
    params = make_params()
    used = {e.row(name).method for e in map(load_experiment, experiment_names()) for name in e.names}
    assert used == set(params.methods)
    kinds = {m.sampler.kind for m in params.methods.values() if m.sampler is not None}
    # Of those that read out any diffusion model, experiments choose in their rows.
    assert kinds | {"heun", "dpmpp_2m", "deis"} == set(SAMPLERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_with_every_row(project: Path, name: str) -> None:
    page = table.table(make_params(), name)
    content = read_json(page.with_suffix(".json"))
    experiment = shortened(name)
    rows = {record["method"] for record in content["records"] if record["value"] is not None}
    # The tiny architecture has two resolutions.
    expected = set(experiment.names) - {"Resolutions 1 - 3: all"}
    assert rows == expected
    assert bool(content["missing"]) == ("Resolutions 1 - 3: all" in experiment.names)
    assert set(content["measurements_sha256"]) == set(experiment.families)
    text = page.read_text()
    assert all(digest[:12] in text for digest in content["measurements_sha256"].values())
    pictures = 1 if experiment.shows == "curve" else len(experiment.families)
    assert len(list(page.parent.glob(f"{name}*.png"))) == pictures
    assert {claim["claim"] for claim in content["claims"]} == {claim.text for claim in experiment.claims}
    assert {(c["method"], c["degradation"]) for c in content["costs"]} == {
        (r["method"], r["degradation"]) for r in content["records"]
    }


def test_again_it_trains_and_computes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = table.table(make_params(), "table_03").read_text()
    monkeypatch.setattr(restoring.Restorer, "_compute", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("trained again"))
    assert table.table(make_params(), "table_03").read_text() == first


def test_tables_share_what_they_have_in_common(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.table(make_params(), "table_01")
    monkeypatch.setattr(restoring.Restorer, "_compute", lambda *_: pytest.fail("computed again"))
    table.table(make_params(), "table_09")
    table.table(make_params(), "figure_03")


def test_models_of_the_pipeline_are_taken(project: Path) -> None:
    params, experiment = make_params(), load_experiment("table_04")
    own = train.train(params, "unconditional")
    keeper = zoo.Zoo("table_04", experiment, experiment.applied(params))
    assert keeper.folder("unconditional") == own
    assert zoo.pipeline_models(params, experiment) == ["unconditional", "palette", "invfusion"]
    assert zoo.pipeline_models(params, load_experiment("table_11")) == ["unconditional"]
    assert zoo.pipeline_models(params, load_experiment("table_02")) == []


def all_reading(model: str, params: Params) -> Params:
    """The parameters with one model behind all methods that have any."""
    methods = {name: m.model_copy(update={"model": m.model and model}) for name, m in params.methods.items()}
    return params.model_copy(update={"methods": methods})


def test_other_processes_train_the_very_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the model that a distilled one with parameters of its own starts from."""
    params = make_params()
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"processes": 2})})
    experiment = load_experiment("table_14")
    model = experiments.Model(train="mmse", params={"train": {"lr": 0.0123}})
    experiment = experiment.model_copy(update={"models": {**experiment.models, "other": model}})
    started = []

    def launch(told: Params, name: str, module: str, arguments: Sequence[str]) -> None:
        start = Path(arguments[2]) if len(arguments) > 1 else None
        assert get_args_parser().parse_args(["-m", module, *arguments]).training_script_args == list(arguments)
        wanted = zoo.Wanted(arguments[0], told, start)
        assert (module, wanted.home.name) == ("components.training.zoo", name)
        assert told.train.lr == 0.0123
        started.append(arguments[0])
        train.run(wanted.params, wanted.name, wanted.network, train.Places.under(wanted.home), wanted.start)

    monkeypatch.setattr(zoo, "launch", launch)
    params = all_reading("other", params)
    keeper = zoo.Zoo("table_14", experiment, params)
    zoo.train_missing([keeper])
    assert keeper.folder("other").exists()
    assert started == ["invfusion", "mmse"]


def test_what_needs_nothing_of_each_other_is_trained_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this module's own command, of all seeds, and a distilled model after the one that it starts from."""
    experiment = load_experiment("table_14")
    experiment = experiment.model_copy(
        update={"models": {**experiment.models, "other": experiments.Model(train="mmse")}}
    )
    params = experiment.applied(make_params())
    params = all_reading("other", params)
    rounds: list[list[str]] = []

    def run_at_once(commands: dict[str, list[str]], *_: object, **__: object) -> int:
        rounds.append(sorted(name.partition("-")[0] for name in commands))
        for _, _, module, *arguments in commands.values():
            assert module == "components.training.zoo"
            monkeypatch.setattr("sys.argv", ["zoo", *arguments])
            zoo.main()
        return 0

    monkeypatch.setattr(zoo, "trainings_at_once", lambda *_: 2)
    monkeypatch.setattr(zoo, "run_at_once", run_at_once)
    zoos = [zoo.Zoo("table_14", experiment, params.model_copy(update={"seed": seed})) for seed in (5, 6)]
    zoo.train_missing(zoos)
    assert rounds == [["invfusion"] * 2, ["mmse"] * 2]
    assert all(keeper.folder("other").exists() for keeper in zoos)
    named = {path.stem for path in Path("state/progress").glob("*.json")}
    assert {keeper.wanted(model).home.name for keeper in zoos for model in ("invfusion", "other")} <= named
    zoo.train_missing(zoos)
    assert len(rounds) == 2, "what is there is never trained twice"
    monkeypatch.setattr(zoo, "run_at_once", lambda *_, **__: 3)
    with pytest.raises(InvFusionError, match="What is trained is kept"):
        zoo.train_missing([zoo.Zoo("table_14", experiment, params.model_copy(update={"seed": s})) for s in (7, 8)])


def test_code_that_changes_while_a_model_is_trained_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that begins later reads the code anew, and trains another model than the one that was asked for."""
    params = all_reading("invfusion", load_experiment("table_04").applied(make_params().model_copy(update={"seed": 9})))
    monkeypatch.setattr(zoo.Wanted, "train", lambda _: None)
    with pytest.raises(InvFusionError, match="was changed in the meantime"):
        zoo.train_missing([zoo.Zoo("table_04", load_experiment("table_04"), params)])


def test_what_cannot_be_trained_leaves_the_others(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(wanted: zoo.Wanted) -> None:
        if wanted.name == "palette":
            raise ConfigError("no such thing here")

    params = load_experiment("table_04").applied(make_params().model_copy(update={"seed": 10}))
    monkeypatch.setattr(zoo.Wanted, "check", check)
    keeper = zoo.Zoo("table_04", load_experiment("table_04"), params)
    zoo.train_missing([keeper])
    found, missing = keeper.provide()
    assert set(missing) == {"palette"}
    assert set(found) == set(keeper.names) - {"palette"}


def test_table_7_trains_for_the_mean_from_fresh_weights_and_distils_beside() -> None:
    experiment, params = load_experiment("table_07"), load_profile()
    changed = experiment.applied(params)
    for variant in ("palette", "invfusion"):
        label = {"palette": "Palette", "invfusion": "InvFusion"}[variant]
        fresh, distilled = (changed.methods[f"{label} {how}"].model for how in ("trained for MMSE", "distilled"))
        assert fresh == f"{variant}_eq7"
        assert changed.starts_from(fresh) is None
        assert isinstance(changed.task(fresh).loss, MMSELoss)
        assert changed.architecture(fresh).variant == variant
        assert experiment.changed_for(distilled, changed).starts_from("mmse") == variant


def test_the_papers_larger_size_knows_no_matrices() -> None:
    params = load_profile("ffhq256")
    kinds = {kind_of(f) for f in (*members_of(params.degradation), *params.evaluate.families)}
    assert "matrix" not in kinds
    assert {"strided_motion_blur", "patch_inpainting"} <= kinds


class TestWithheld:
    """A conditional model that is told nothing stands for an unconditional one, and is shown as such."""

    def test_step_sizes_of_another_network_are_not_taken(self, project: Path) -> None:
        params = tuned(make_params(), psnr=0.7)
        assert params.methods["DPS"].tuned
        changed = load_experiment("zero_shot").applied(params)
        assert changed.methods["DPS by InvFusion-G"].withheld
        assert not changed.methods["DPS by InvFusion-G"].tuned
        assert not changed.methods["InvFusion-G"].withheld

    def test_nor_are_those_of_a_sampler_with_other_settings(self, project: Path) -> None:
        changed = load_experiment("authors").applied(tuned(make_params(), psnr=0.7))
        assert not changed.methods["DPS"].tuned

    def test_it_is_told_and_grouped(self, project: Path) -> None:
        changed = load_experiment("zero_shot").applied(make_params())
        assert tables.group_of(changed.methods["DPS by InvFusion-G"]) == "Zero-shot methods"
        assert tables.group_of(changed.methods["InvFusion-G"]) == "Training-based methods"
        assert not is_invfusion(changed, "DPS by InvFusion-G")
        column = methods.columns(changed, {"invfusion_g"})[0]
        told = {m.name: table.told_to(load_experiment("zero_shot"), changed, m) for m in column.methods}
        gaussian = ", and the Gaussian of the training images"
        nothing = "the sampler y and H, the network nothing of the measurement"
        assert told["DPS by InvFusion-G"] == nothing + gaussian
        assert told["InvFusion-G"] == "the network y, H and σ_y" + gaussian
        assert told["Wiener"] == f"y and H{gaussian}, without a trained network"
        assert told["H_pinv y"] == "y and H, without a trained network"

    def test_what_a_row_is_told_follows_its_network_and_the_noise(self, project: Path) -> None:
        experiment = load_experiment("table_11")
        changed = experiment.applied(make_params())
        column = methods.columns(changed, {"unconditional", "palette", "invfusion", "invfusion_g", "mmse"})[0]
        told = {m.name: table.told_to(experiment, changed, m) for m in column.methods}
        assert told["DDRM"] == "the sampler y, H and σ_y, the network nothing of the measurement"
        assert told["Palette"] == told["Palette MMSE"] == "the network H†y"
        assert told["InvFusion"] == "the network y and H"
        assert told["Wiener"].startswith("y, H and σ_y, and the Gaussian of the training images")

    def test_a_table_without_step_sizes_cannot_be_tuned(self, project: Path) -> None:
        with pytest.raises(ConfigError, match="none of the methods has a step size"):
            tune.tune(make_params(), table="one_step")


def test_other_processes_take_the_parameters_of_any_experiment(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that never draws with the model that is registered."""
    told = load_experiment("table_08").applied(make_params())
    assert told.register_.model not in {method.model for method in told.methods.values()}
    (tmp_path / "told.yaml").write_text(json.dumps(told.model_dump(mode="json", by_alias=True)))
    trained: list[str] = []
    monkeypatch.setattr(zoo.Wanted, "train", lambda wanted: trained.append(wanted.name))
    monkeypatch.setattr("sys.argv", ["zoo", "invfusion", "--params", str(tmp_path / "told.yaml")])
    zoo.main()
    assert trained == ["invfusion"]


class TestWhatIsMissing:
    def test_models(self, project: Path, caplog: pytest.LogCaptureFixture) -> None:
        table.table(make_params(), "table_04")
        params = make_params()
        longer = params.train.model_copy(update={"images": 16})
        with pytest.raises(
            CheckpointError, match=r"nothing can be computed.*'unconditional' is not trained; its place"
        ):
            table.table(params.model_copy(update={"train": longer}), "table_04", trains=False)
        unrolled = params.recipe("unrolled_ddrm").model_copy(update={"lr": 0.123})
        changed = params.model_copy(update={"recipes": params.recipes.model_copy(update={"unrolled_ddrm": unrolled})})
        content = read_json(table.table(changed, "table_14", trains=False).with_suffix(".json"))
        assert list(content["missing"]) == ["unrolled_ddrm"]
        assert (
            "computed nevertheless: Wiener, Gaussian posterior, DDRM sampling, InvFusion, InvFusion MMSE" in caplog.text
        )
        verdicts = {(c["claim"], c["verdict"]) for c in content["claims"]}
        assert ("Unrolling raises PSNR", "cannot be tested here") in verdicts

    def test_the_dataset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
        (tmp_path / "experiments").symlink_to(ROOT / "experiments")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="stage step has not been run"):
            table.table(make_params(), "table_03")

    def test_classes(self, project: Path) -> None:
        with pytest.raises(ConfigError, match="class-conditional, but the dataset 'digits16' has no class labels"):
            Experiment.model_validate(
                {"title": "t", "table": "2", "dataset": "ImageNet64", "class_conditional": True, "metrics": ["psnr"],
                 "groups": {"all": ["DDRM"]}}
            ).applied(make_params())  # fmt: skip

    def test_an_unknown_experiment(self, project: Path) -> None:
        with pytest.raises(ConfigError, match="unknown experiment 'table_3': did you mean 'table_"):
            load_experiment("table_3")

    def test_one_failing_table_does_not_stop_the_others(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = []

        def make(_: Params, name: str, trains: bool, seeds: int) -> None:
            if name == "table_03":
                raise DataError("no such data")
            made.append(name)

        monkeypatch.setattr(table, "table", make)
        monkeypatch.setattr("sys.argv", ["table", "--params", str(ROOT / "params.yaml"), "table_03", "table_04"])
        with pytest.raises(SystemExit, match="table_03 could not be made"):
            table.main()
        assert made == ["table_04"]


def record(method: str, metric: str, value: float | None, spread: float = 0.1, **more: Any) -> Record:
    known = value is not None
    low, high = (value - spread, value + spread) if known else (None, None)
    return Record(
        method=method, degradation="matrix", metric=metric, value=value, low=low, high=high, n=40, nfe=1,
        measurements_sha256="", **more,
    )  # fmt: skip


RECORDS = [
    record("A", "psnr", 12.0, 2.0), record("B", "psnr", 11.0, 2.0), record("C", "psnr", 11.9, 2.0),
    record("D", "psnr", 12.5, 2.0, n_diverged=2), record("A", "fd_pixel8x8", 3.0), record("B", "fd_pixel8x8", 1.0),
    record("A", "kid", 3.0), record("B", "kid", 1.0), record("C", "kid", 1.1),
    record("A", "cfid", 8.0, 3.0), record("B", "cfid", 7.0, 3.0), record("C", "cfid", 7.9, 3.0),
    record("D", "cfid", 8.5, n_diverged=2),
    record("A", "lpips", None, unavailable="no file weights/alexnet"),
    record("A", "fid", None, unavailable="no file weights/inception"), record("B", "fid", None, unavailable="so too"),
]  # fmt: skip


def claimed(folder: Path, **claim: Any) -> verdicts.Finding:
    """A claim on values that vary much from image to image, and little from method to method."""
    shared, own = (torch.randn(40, dtype=torch.float64, generator=generator(0, name)) for name in ("x", "C"))
    scores = {
        "A": 12 + shared, "B": 11 + shared, "C": 11.9 + shared + 0.5 * (own - own.mean()),
        "D": torch.cat([12.5 + shared[:38], torch.full((2,), torch.nan, dtype=torch.float64)]),
    }  # fmt: skip
    for method, values in scores.items():
        (folder / "matrix").mkdir(exist_ok=True)
        save_file(
            {"psnr": values, "cfid": values.nan_to_num(0) - 4}, folder / "matrix" / f"{method.lower()}.safetensors"
        )
    evidence = verdicts.Evidence(RECORDS, folder)
    (finding,) = verdicts.findings([ClaimConfig(text="t", **claim)], ["A", "B", "C", "D"], ["matrix"], evidence)
    return finding


@pytest.mark.parametrize(
    ("claim", "verdict", "numbers"),
    [
        # The intervals of A and B overlap widely, that of their difference does not.
        ({"better": "A", "metric": "psnr", "than": ["B"]}, "holds", "A PSNR 12.0 (10.0–14.0) against B PSNR 11.0"),
        ({"better": "A", "metric": "psnr", "than": ["B"]}, "holds", "difference +1.00, 40 images paired"),
        ({"better": "B", "metric": "psnr", "than": ["A"]}, "does not hold", "difference −1.00, 40"),
        ({"better": "A", "metric": "psnr", "than": ["C"]}, "undecided", "difference +0.10 (−0."),
        # Against all, the worst rival decides; images that diverged are left out of the pairs.
        ({"better": "A", "metric": "psnr"}, "does not hold", "against D PSNR 12.5"),
        ({"better": "A", "metric": "psnr"}, "does not hold", "38 images paired"),
        ({"better": "D", "metric": "psnr"}, "holds", "against A PSNR 12.0"),
        ({"better": "A", "metric": "psnr", "than": ["B"], "within": 1.5}, "holds", "+1.00"),
        ({"better": "A", "metric": "psnr", "than": ["B"], "within": 0.9}, "does not hold", "+1.00"),
        ({"better": "A", "metric": "psnr", "than": ["C"], "within": 0.1}, "undecided", "+0.10"),
        # Of distances between sets the same images were resampled; where some diverged, there are intervals alone.
        ({"better": "B", "metric": "cfid", "than": ["A"]}, "holds", "−1.00, 40 images paired"),
        ({"better": "A", "metric": "cfid", "than": ["C"]}, "undecided", "+0.10 (−0."),
        ({"better": "B", "metric": "cfid", "than": ["D"]}, "undecided", "from the two intervals"),
        # So it is where what was resampled was not kept.
        ({"better": "B", "metric": "kid", "than": ["A"]}, "holds", "−2.00 (−2.20 to −1.80), from the two intervals"),
        ({"better": "B", "metric": "kid"}, "undecided", "against C KID 1.10 (1.00–1.20): difference −0.10"),
        ({"better": "B", "metric": "kid"}, "undecided", "no number of D"),
        # No stand-in decides a claim, and what is missing says why.
        ({"better": "B", "metric": "fid"}, "cannot be tested here", "so too"),
        ({"better": "A", "metric": "fid", "than": ["A"], "than_metric": "cfid"}, "cannot be tested here", "inception"),
        ({"better": "A", "metric": "lpips"}, "cannot be tested here", "no file weights/alexnet"),
        ({"better": "A", "metric": "kid", "than": ["A", "D"]}, "cannot be tested here", "no KID of D"),
        ({"better": "A", "metric": "std_ratio"}, "cannot be tested here", "no std ratio of A"),
    ],
)
def test_claims_are_judged(tmp_path: Path, claim: dict[str, Any], verdict: str, numbers: str) -> None:
    finding = claimed(tmp_path, **claim)
    assert finding.verdict == verdict
    assert numbers in finding.numbers


def test_without_inceptions_weights_claims_about_fid_and_cfid_cannot_be_tested(project: Path) -> None:
    """On the page, in its Markdown and in its JSON; the stand-in is shown with the score of real images."""
    page = table.table(make_params(), "table_03")
    content = read_json(page.with_suffix(".json"))
    (claim,) = [claim for claim in content["claims"] if claim["claim"] == "InvFusion has the best CFID"]
    assert claim["verdict"] == "cannot be tested here"
    assert "no file weights/inception" in claim["numbers"]
    assert len({claim["verdict"] for claim in content["claims"]}) > 1, "others can"
    shown = page.with_suffix(".md").read_text()
    (row,) = [line for line in shown.splitlines() if "InvFusion has the best CFID" in line]
    assert "| cannot be tested here | no file weights/inception" in row
    assert "CFD-px8↓" in shown
    assert re.search(r"FD-px8: 4 held-out real images score .* It is no FID, and no claim is judged by it", shown)
    (row,) = re.findall(r"<tr>(?:(?!<tr>).)*InvFusion has the best CFID.*?</tr>", page.read_text(), re.DOTALL)
    assert "cannot be tested here" in row


def test_no_claim_is_judged_by_a_stand_in() -> None:
    stand_ins = {metric.stand_in for metric in METRICS.values()} - {None}
    claims = [claim for name in NAMES for claim in Experiment.model_validate(
        experiments.read_values(ROOT / "experiments" / f"{name}.yaml")).claims]  # fmt: skip
    assert not stand_ins & {metric for claim in claims for metric in (claim.metric, claim.than_metric)}


def test_the_page_on_reproduction_has_a_row_for_every_table_and_figure() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text()
    of_rows = text.partition("## Table by table")[2]
    with FILE.open(newline="") as file:
        reported = {(row["table"], row["dataset"].split()[0].lower()) for row in csv.DictReader(file)}
    assert len({number for number, _ in reported}) == 13, "all but the hyperparameters"
    for number, dataset in reported:
        (row,) = re.findall(rf"^\| Table {number} \|.*$", of_rows, re.MULTILINE)
        assert f"make table T={number} " in row
        assert dataset in row
        assert re.search(rf"^\| Table {number}\b[^|]*\| {dataset} \|", text, re.MULTILINE), "its cost"
    assert all(f"| Figure {number} |" in of_rows for number in range(1, 7))
    assert "| Tables 5, 6 |" in of_rows


def test_no_result_in_the_docs_says_more_about_fid_and_cfid() -> None:
    lines = [line for path in (ROOT / "docs" / "results").rglob("*.md") for line in path.read_text().splitlines()]
    claims = [line for line in lines if line.startswith("| ") and re.search(r"C?FID", line.split("|")[1])]
    assert len(claims) >= 18
    untested = r"\| cannot be tested here \|( cannot be tested here \d \|)? no file weights/inception"
    assert all(re.search(untested, line) for line in claims)


def test_numbers_of_other_measurements_are_not_compared(tmp_path: Path) -> None:
    ours, theirs = RECORDS[0], replace(RECORDS[1], measurements_sha256="other")
    verdict = verdicts.Evidence([ours, theirs], tmp_path).compare(ours.key, theirs.key)
    assert verdict.outcome == "cannot be tested here"
    assert "other measurements" in verdict.reason or "different measurements" in verdict.reason


def test_the_papers_numbers_stand_beside_ours_on_its_data_alone() -> None:
    laid_out = [
        tables.layout({"all": ["DDRM"]}, {"box_outpainting": ["psnr"]}, [], Paper.of_table("3", name))
        for name in ("ffhq64", "digits16")
    ]
    cells = [table.groups["all"][0][1] for table in laid_out]
    assert cells[0].paper
    assert cells[0].text == cells[1].text == "–"
    assert cells[1].paper == ""
    assert Paper.of_table("15", "ffhq64").dataset == "FFHQ64"
    assert Paper.of_table("15", "ffhq64").number("patch_inpainting", "ASeq-DIP", "kid") == "0.0755"
    sums = Paper.of_table("10", "imagenet64")
    assert sums.number("patch_inpainting", "Palette", "consistency_sse") == "0.23"
    assert not sums.number("strided_motion_blur", "Palette", "consistency_sse")
    assert not sums.number("patch_inpainting", "Palette", "consistency_mse")


def test_the_papers_numbers_stand_where_law_training_and_inverse_are_its_own() -> None:
    blur, patches = FAMILIES["strided_motion_blur"], FAMILIES["patch_inpainting"]
    official, ours = [blur(law="official"), patches(law="official")], [blur(), patches()]
    table_1 = Paper.of_table("1", "ffhq64")

    def shown(evaluated: list[Any], learned: list[Any], *key: str) -> bool:
        return bool(table_1.under(evaluated, Mixture(members=learned)).number(*key))

    assert shown(official, official, "patch_inpainting", "InvFusion", "psnr")
    assert not shown(ours, official, "patch_inpainting", "InvFusion", "psnr")
    assert not shown(official, ours, "patch_inpainting", "InvFusion", "psnr"), "it learned other ones"
    assert shown(official, ours, "patch_inpainting", "DDRM", "psnr"), "it learned none"
    assert shown(official, [*ours, FAMILIES["matrix"]()], "matrix", "InvFusion", "psnr"), "of which there is one law"
    assert not shown(official, ours, "matrix", "InvFusion", "psnr"), "it learned none, and others otherwise"
    assert shown(official, official, "strided_motion_blur", "InvFusion", "psnr")
    assert not shown(official, official, "strided_motion_blur", "InvFusion", "cfid"), "projected by another inverse"
    assert not shown(official, official, "strided_motion_blur", "DDRM", "psnr")
    assert not shown(official, official, "strided_motion_blur", "InDI", "psnr"), "it starts from the exact inverse"


def test_stand_ins_are_shown_under_their_own_name() -> None:
    assert tables.with_stand_ins(["psnr", "fid", "cfid"], RECORDS) == ["psnr", "fd_pixel8x8", "cfid"]
    assert tables.with_stand_ins(["fid"], [*RECORDS, record("A", "fid", 3.0)]) == ["fid"]


BEYOND_THE_PAPER = {"Wiener", "Gaussian posterior", "InvFusion-G", "InvFusion-G MMSE"}
BEYOND_THE_PAPER |= {"Palette distilled", "InvFusion distilled"}


def test_every_row_of_the_papers_tables_is_known(project: Path) -> None:
    for name in experiment_names():
        experiment = load_experiment(name)
        if experiment.shows == "table" and experiment.table and experiment.dataset == "FFHQ64":
            paper = Paper.of_table(experiment.table, "ffhq64")
            ours = {experiment.row(row).paper or row for row in experiment.names}
            assert {method for _, method, _ in paper.values} == ours - BEYOND_THE_PAPER, name


# Without trained models.
OF_PRIORS = {
    "title": "t", "table": "", "dataset": "FFHQ64", "metrics": ["psnr"], "families": ["matrix"],
    "groups": {"all": ["H_pinv y", "Wiener", "Gaussian posterior"]},
    "claims": [{"text": "c", "better": "Wiener", "than": ["H_pinv y"], "metric": "psnr"}],
}  # fmt: skip


@pytest.fixture
def of_priors(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small experiment that needs no training."""
    (tmp_path / "own.yaml").write_text(json.dumps(OF_PRIORS))
    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    return "own"


class TestSeeds:
    def test_their_spread_is_told(self, of_priors: str) -> None:
        page = table.table(make_params(), of_priors, seeds=3)
        seeds = read_json(page.with_suffix(".json"))["seeds"]
        assert [seed["seed"] for seed in seeds] == [0, 1, 2]
        assert len({seed["measurements_sha256"]["matrix"] for seed in seeds}) == 3
        values = [r["value"] for s in seeds for r in s["records"] if (r["method"], r["metric"]) == ("Wiener", "psnr")]
        text = page.with_suffix(".md").read_text()
        assert f"| {statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} |" in text
        counts = Counter(claim["verdict"] for seed in seeds for claim in seed["claims"])
        assert ", ".join(f"{verdict} {n}" for verdict, n in counts.items()) in text

    def test_one_has_none(self, of_priors: str) -> None:
        page = table.table(make_params(), of_priors)
        assert "±" not in page.read_text()
        assert len(read_json(page.with_suffix(".json"))["seeds"]) == 1

    def test_each_trains_its_own_models(self, project: Path) -> None:
        params, experiment = make_params(), load_experiment("table_04")
        homes = {
            zoo.Zoo("t", experiment, experiment.applied(params.model_copy(update={"seed": seed})))
            .wanted("palette").home for seed in range(3)
        }  # fmt: skip
        assert len(homes) == 3


def tuned(params: Params, **values: float) -> Params:
    """DPS with other step sizes for the matrix family, by the metric that found them."""
    sections = {metric: {"matrix": {"zeta": zeta}} for metric, zeta in values.items()}
    dps = params.methods["DPS"].model_copy(update={"tuned": sections})
    return params.model_copy(update={"methods": {**params.methods, "DPS": dps}})


def for_table(params: Params, experiment: str, row: str) -> Params:
    """A step size for one row of one table alone."""
    own = {experiment: {row: {"psnr": {"matrix": {"zeta": 3.0}}}}}
    return params.model_copy(update={"tables": params.tables.model_copy(update={"tuned": own})})


def of_dps(params: Params) -> tuple[Experiment, Params]:
    """Table 11 with the row of DPS alone."""
    experiment = load_experiment("table_11")
    alone = experiment.model_copy(update={"groups": {"": ["DPS"]}, "claims": []})
    return alone, alone.applied(params)


class TestTunedByWhatIsReported:
    @pytest.mark.parametrize(
        ("found", "zeta", "said"),
        [
            ({"psnr": 1.0, "lpips": 2.0}, 2.0, "DPS by LPIPS."),
            ({"psnr": 1.0}, 1.0, "DPS by PSNR, as none were tuned by LPIPS."),
            ({"kid": 3.0}, 3.0, "DPS by KID, as none were tuned by LPIPS."),
            ({}, None, ""),
        ],
    )
    def test_a_table_takes_the_values_of_its_own_metric(
        self, project: Path, found: dict[str, float], zeta: float | None, said: str
    ) -> None:
        params, experiment = tuned(make_params(), **found), load_experiment("table_09")
        changed = experiment.applied(params)
        plan = [column for column in methods.columns(changed, ["unconditional"]) if column.kind == "matrix"]
        (dps,) = [method for column in plan for method in column.methods if method.name == "DPS"]
        assert dps.sampler.zeta == (zeta or params.methods["DPS"].sampler.zeta)
        outcome = table.Outcome("table_09", experiment, changed, [methods.Column(None, (dps,))], Results(), {}, {})
        line = f"Step sizes were tuned on the validation split: {said}" if said else ""
        assert table.tuned_line(outcome) == line
        assert line in table.caption(outcome)

    def test_the_evaluation_takes_those_of_its_own(self, project: Path) -> None:
        (column, *_) = methods.columns(tuned(make_params(), lpips=2.0, psnr=1.0), ["unconditional"])[2:]
        assert column.kind == "matrix"
        assert {m.tuned_by for m in column.methods if m.name == "DPS"} <= {"psnr"}

    def test_what_cannot_be_computed_leaves_it_to_the_next(self) -> None:
        params = make_params()
        wanted = params.model_copy(update={"tune": params.tune.model_copy(update={"metrics": ["fid", "cfid", "psnr"]})})
        assert tune.choose_metric(wanted, {}).name == "fid"
        assert tune.choose_metric(wanted, {"fid": "no weights"}).name == "cfid"
        assert tune.choose_metric(wanted, {"fid": "no weights", "cfid": "no weights"}).name == "psnr"
        noisy = wanted.evaluate.model_copy(update={"noise": GaussianNoise(sigma_y=0.1)})
        assert tune.choose_metric(wanted.model_copy(update={"evaluate": noisy}), {"fid": "-"}).name == "psnr"
        with pytest.raises(ConfigError, match=r"none of tune\.metrics can be computed: fid: -; cfid: -; psnr: -"):
            tune.choose_metric(wanted, dict.fromkeys(("fid", "cfid", "psnr"), "-"))

    def test_values_of_a_table_hold_there_alone_and_before_others(self, project: Path) -> None:
        params = for_table(tuned(make_params(), psnr=0.7, lpips=0.8), "table_11", "DPS")
        noisy, noiseless = (load_experiment(name).applied(params).methods["DPS"] for name in ("table_11", "table_09"))
        assert noisy.tuned == {"psnr": {"matrix": {"zeta": 3.0}}, "lpips": {}}
        assert noiseless.tuned == params.methods["DPS"].tuned
        assert noisy.tuned_by("matrix", ["lpips", "psnr"]) == "psnr", "the table's own, by whatever metric"
        rows = for_table(make_params(), "zero_shot", "DPS by InvFusion-G")
        assert load_experiment("zero_shot").applied(rows).methods["DPS by InvFusion-G"].tuned["psnr"]

    def test_other_families_keep_what_holds_for_all(self, project: Path) -> None:
        params = for_table(make_params(), "table_11", "DPS")
        dps = params.methods["DPS"].model_copy(update={"tuned": {"psnr": {"patch_inpainting": {"zeta": 0.7}}}})
        changed = load_experiment("table_11").applied(
            params.model_copy(update={"methods": {**params.methods, "DPS": dps}})
        )
        assert changed.methods["DPS"].tuned == {"psnr": {"patch_inpainting": {"zeta": 0.7}, "matrix": {"zeta": 3.0}}}

    def test_a_row_that_was_taken_out_may_keep_its_values(self, project: Path) -> None:
        load_experiment("table_04").applied(for_table(make_params(), "table_04", "DPS"))

    def test_a_page_says_whose_step_sizes_are_its_own(self, project: Path) -> None:
        experiment = load_experiment("table_09")
        changed = experiment.applied(for_table(make_params(), "table_09", "DPS"))
        plan = [column for column in methods.columns(changed, ["unconditional"]) if column.kind == "matrix"]
        outcome = table.Outcome("table_09", experiment, changed, plan, Results(), {}, {})
        assert table.tuned_line(outcome).endswith("Those of DPS are of this table's own models and measurements.")

    @pytest.mark.parametrize(
        ("experiment", "row", "message"),
        [
            ("table_99", "DPS", r"tables\.tuned: unknown experiment 'table_99'"),
            ("table_11", "DSP", r"tables\.tuned\.table_11: unknown row 'DSP'.*did you mean 'DPS'"),
            ("table_11", "Wiener", r"tables\.tuned\.table_11.*(\n.*)*'zeta' is no setting that can be tuned"),
        ],
    )
    def test_a_wrong_name_is_told(self, project: Path, experiment: str, row: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_experiment("table_11").applied(for_table(make_params(), experiment, row))

    def test_a_table_is_tuned_on_its_own_models_and_measurements(self, project: Path) -> None:
        params = make_params()
        changed = zoo.Zoo.of(params, "table_11", "val").params
        assert changed.evaluate.noise == GaussianNoise(sigma_y=0.1)
        assert changed.tune.metrics == ["psnr", "fid"]
        assert "DPS" in changed.methods
        with pytest.raises(
            CheckpointError, match=r"not trained; its place is artifacts/zoo/unc.*flows\.table --name table_11"
        ):
            tune.tune(params.model_copy(update={"seed": 77}), ["DPS"], "table_11")
        zoo.train_missing([zoo.Zoo("table_11", *of_dps(params))])
        tune.tune(params, ["DPS"], "table_11")
        written = experiments.read_values(tune.FRAGMENT)["tables"]["tuned"]["table_11"]
        assert set(written) == {"DPS"}
        values = params.model_dump(mode="json", by_alias=True)
        again = Params.model_validate(values | {"tables": {"max_images": N, "tuned": {"table_11": written}}})
        found = load_experiment("table_11").applied(again).methods["DPS"].tuned["psnr"]
        assert written["DPS"]["psnr"].items() <= found.items()
        noisy = read_json(tune.TRIALS)
        tune.tune(params, ["DPS"], "table_09")
        assert [t["metric"] for t in read_json(tune.TRIALS)] != [t["metric"] for t in noisy]


@pytest.mark.parametrize(
    ("metrics", "found"), [((10, 11, 12), ["greatest"]), ((12, 11, 10), ["least"]), ((1, 2, 1), [])]
)
def test_tuning_says_when_the_best_is_an_end(metrics: tuple[float, ...], found: list[str]) -> None:
    trials = [tune.Trial("DPS", "matrix", "zeta", v, m, 0) for v, m in zip((1.0, 2.0, 4.0), metrics, strict=True)]
    value = {"greatest": 4, "least": 1}
    expected = [f"matrix / DPS: zeta = {value[end]} is the {end} value tried" for end in found]
    assert tune.at_the_end(trials, "psnr") == expected


def test_tuning_takes_the_best_value_of_each_family(project: Path) -> None:
    params = make_params()
    train.train(params, "unconditional")
    assert tune.tune(params, ["DPS", "DDRM"]).read_text().startswith("# The best values by psnr")
    written = experiments.read_values(tune.FRAGMENT)["methods"]
    trials = read_json(tune.TRIALS)
    families = {family.kind for family in params.evaluate.families}
    assert set(written["DPS"]["tuned"]["psnr"]) == families
    for family in families:
        tried = {t["value"]: t["metric"] for t in trials if (t["method"], t["family"]) == ("DPS", family)}
        assert set(tried) == set(SAMPLERS["dps"].tunable["zeta"])
        assert tried[written["DPS"]["tuned"]["psnr"][family]["zeta"]] == max(tried.values())
    with pytest.raises(ConfigError, match="InvFusion cannot be tuned; the methods that can be are DDRM"):
        tune.tune(params, ["InvFusion"])


def test_pages_say_of_how_many_draws_scores_are() -> None:
    params = load_profile("digits16")
    outcome = table.Outcome("few_step", load_experiment("few_step"), params, [], Results(), {}, {})
    assert table.draws_notes(outcome) == [
        "Draws are judged by 4 of each of 48 images. Of so few, even such without any spread would cover 0.75 of the "
        "pixels by chance: the std ratio tells more."
    ]
    without = params.evaluate.model_copy(update={"calibration_images": 0})
    assert table.draws_notes(replace(outcome, params=params.model_copy(update={"evaluate": without}))) == []
