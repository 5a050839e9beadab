"""What makes a result stale, and what does not: each sentence is tried on a copy of the project's sources."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

import components.code
from components.code import NEUTRAL, Sources, code_of
from components.oracle.judging import Cell
from components.oracle.records import identity
from components.oracle.training import Bench
from components.params import params_from
from components.profiles import merged, profile_names, profile_values
from flows.identify import identities
from flows.stages import STAGES
from invfusion.oracle import GaussianMixture
from invfusion.samplers import DDRM, DPS, Heun

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "artifacts/identity"
PIPELINE = ["unconditional", "palette", "invfusion", "invfusion_g"]
WITH_FRESH_WEIGHTS = {f"train/{model}" for model in PIPELINE}
TRAININGS = WITH_FRESH_WEIGHTS | {"train/mmse", "train/nppc"}


VALUES = {name: profile_values(name) for name in profile_names()}


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


GRAPH: dict[str, Any] = {**read(ROOT / "dvc.yaml")["stages"], **read(ROOT / "oracle/dvc.yaml")["stages"]}


def body(stage: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stage.get("do", stage)
    return found


class TestTheGraph:
    @pytest.mark.parametrize("name", sorted(set(GRAPH) - {"identify"}))
    def test_a_stage_runs_its_step_and_depends_on_its_identity(self, name: str) -> None:
        stage = body(GRAPH[name])
        words = stage["cmd"].removeprefix("python -m flows.step ").split()
        assert words[0] in STAGES
        identity = f"{words[0]}/{words[2]}" if len(words) > 1 else words[0]
        assert f"{FOLDER}/{identity}.json" in stage["deps"]

    def test_each_stage_of_the_table_stands_in_the_graph(self) -> None:
        assert {body(stage)["cmd"].split()[3] for name, stage in GRAPH.items() if name != "identify"} == set(STAGES)

    def test_no_stage_depends_on_code_by_hand(self) -> None:
        for name in set(GRAPH) - {"identify"}:
            assert not [dep for dep in body(GRAPH[name])["deps"] if dep.endswith(".py")], name

    @pytest.mark.parametrize("profile", profile_names())
    @pytest.mark.parametrize("name", GRAPH)
    def test_every_profile_states_what_a_stage_reads(self, name: str, profile: str) -> None:
        for key in body(GRAPH[name]).get("params", []):
            value: Any = VALUES[profile]
            for part in key.split("."):
                assert part in value, f"stage {name} tracks {key}"
                value = value[part]

    def test_no_stage_depends_on_operational_settings(self) -> None:
        tracked = [key for stage in GRAPH.values() for key in body(stage).get("params", [])]
        assert not [key for key in tracked if key.startswith("runtime")]


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Any]:
    return changed_by({})


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, whose code is taken for the project's."""
    for package in ("invfusion", "components"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    # Read once, after the test's edits.
    sources = functools.cache(lambda: Sources(tmp_path))
    monkeypatch.setattr("components.training.identity.sources", sources)
    monkeypatch.setattr("flows.identify.sources", sources)
    monkeypatch.setattr("components.code.sources", sources)
    return tmp_path


def changed_by(values: dict[str, Any]) -> dict[str, Any]:
    return identities(params_from(merged(VALUES["digits16"], values), "test"))


def stale(before: dict[str, Any], values: dict[str, Any] | None = None) -> set[str]:
    after = changed_by(values or {})
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def edit(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def appended(text: str) -> str:
    return f"{text}\nADDED = 1\n"


def rewrite(tree: Path, name: str, change: Callable[[str], str]) -> None:
    path = tree / name
    path.write_text(change(path.read_text()))


class TestEditsOfCode:
    def test_comments_and_docstrings_rerun_nothing(self, tree: Path, unchanged: dict[str, Any]) -> None:
        for path in tree.rglob("*.py"):
            path.write_text(f'"""Another docstring."""\n# A comment.\n{path.read_text()}\n# The end.\n')
        for path in tree.rglob("*.py"):
            path.write_text(path.read_text().replace("from __future__", "# from __future__"))
        assert stale(unchanged) == set()

    def test_a_file_that_nobody_imports_reruns_nothing(self, tree: Path, unchanged: dict[str, Any]) -> None:
        for folder in ("invfusion/samplers", "invfusion/operators", "components/evaluation", "invfusion/training"):
            (tree / folder / "unused.py").write_text("VALUE = 1\n")
        assert stale(unchanged) == set()

    @pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "invfusion/samplers").glob("[a-z]*.py")))
    def test_a_sampler_reruns_no_training(self, tree: Path, unchanged: dict[str, Any], name: str) -> None:
        rewrite(tree, f"invfusion/samplers/{name}.py", appended)
        assert not stale(unchanged) & TRAININGS

    def test_a_metric_reruns_no_training(self, tree: Path, unchanged: dict[str, Any]) -> None:
        (tree / "invfusion/metrics/ssim.py").write_text("def ssim(): ...\n")
        rewrite(tree, "invfusion/metrics/__init__.py", lambda text: f"from invfusion.metrics.ssim import ssim\n{text}")
        for path in (tree / "invfusion/metrics").glob("*.py"):
            rewrite(tree, f"invfusion/metrics/{path.name}", appended)
        assert not stale(unchanged) & TRAININGS

    def test_an_operator_reruns_no_training_without_one(self, tree: Path, unchanged: dict[str, Any]) -> None:
        (tree / "invfusion/operators/sum.py").write_text("class Sum: ...\n")
        (tree / "invfusion/degradations/sums.py").write_text("from invfusion.operators.sum import Sum\n")
        for registry, line in (
            ("invfusion/operators/__init__.py", "from invfusion.operators.sum import Sum\n"),
            ("invfusion/operators/spec.py", "from invfusion.operators.sum import Sum\n"),
            ("invfusion/degradations/__init__.py", "import invfusion.degradations.sums\n"),
            ("invfusion/degradations/mixture.py", "import invfusion.degradations.sums\n"),
        ):
            rewrite(tree, registry, lambda text: f"{line}{text}")  # noqa: B023
        found = stale(unchanged)
        assert "train/unconditional" not in found
        assert "evaluate" in found

    def test_a_recipe_reruns_no_other_training(self, tree: Path, unchanged: dict[str, Any]) -> None:
        (tree / "invfusion/training/recipes/other.py").write_text("class Other: ...\n")
        line = "from invfusion.training.recipes.other import Other\n"
        rewrite(tree, "invfusion/training/recipes/__init__.py", lambda text: f"{line}{text}")
        rewrite(tree, "invfusion/training/recipes/mmse.py", appended)
        assert stale(unchanged) & TRAININGS == {"train/mmse"}

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("invfusion/training/step.py", TRAININGS),
            ("invfusion/models/hdit.py", TRAININGS),
            ("invfusion/degradations/matrix.py", TRAININGS - {"train/unconditional"}),
            ("invfusion/data/staging.py", {"stage"}),
            ("invfusion/samplers/deis.py", {"evaluate"}),
            ("invfusion/metrics/psnr.py", {"evaluate"}),
            ("components/evaluation/methods.py", {"evaluate"}),
            ("components/reporting/report.py", {"report"}),
            ("components/registry/gates.py", {"register"}),
            ("components/registry/register.py", {"register"}),
            ("components/oracle/models.py", {"oracle"}),
        ],
    )
    def test_what_reads_a_module_is_stale(
        self, tree: Path, unchanged: dict[str, Any], name: str, expected: set[str]
    ) -> None:
        rewrite(tree, name, appended)
        assert expected <= stale(unchanged)

    @pytest.mark.parametrize("name", NEUTRAL)
    def test_what_changes_no_result_reruns_nothing(self, tree: Path, unchanged: dict[str, Any], name: str) -> None:
        path = tree / name.replace(".", "/")
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            rewrite(tree, str(file.relative_to(tree)), appended)
        assert stale(unchanged) == set()


class TestChangedValues:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({"seed": 1}, TRAININGS),
            ({"train": {"lr": 0.5}}, WITH_FRESH_WEIGHTS),
            ({"train": {"batch_size": 64}}, TRAININGS),
            ({"recipes": {"indi": {"epsilon": 0.5}}}, set()),
            ({"recipes": {"mmse": {"lr": 0.5}}}, {"train/mmse"}),
            ({"recipes": {"nppc": {"n_components": 2}}}, {"train/nppc"}),
            ({"train": {"models": [*PIPELINE, "indi"]}}, {"train/indi"}),
            (
                {"degradation": {"kind": "box_inpainting"}},
                {"train/palette", "train/invfusion", "train/invfusion_g", "train/mmse"},
            ),
            ({"model": {"preset": "small64"}}, WITH_FRESH_WEIGHTS),
            ({"runtime": {"workers": 1}, "report": {"gallery_images": 3}}, set()),
        ],
        ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
    )
    def test_a_value_makes_stale_the_models_that_it_changes(
        self, unchanged: dict[str, Any], values: dict[str, Any], expected: set[str]
    ) -> None:
        assert stale(unchanged, values) == expected

    def test_a_setting_of_one_recipe_reruns_its_own_model_alone(self) -> None:
        values = {"train": {"models": [*PIPELINE, "indi"]}}
        before = changed_by(values)
        assert stale(before, merged(values, {"recipes": {"indi": {"epsilon": 0.5}}})) == {"train/indi"}


class TestTheOraclesMemory:
    """What the oracle has judged and trained is kept under a name; another name means that it is done again."""

    @staticmethod
    def names(values: dict[str, Any] | None = None) -> dict[str, str]:
        params = params_from(merged(VALUES["digits16"], values or {}), "test")
        name, family = params.oracle.priors[0].name, params.oracle.families[0]
        nothing = torch.zeros(1, 64)
        prior = GaussianMixture.of_factors((1, 8, 8), torch.ones(1), nothing, nothing[..., None], torch.ones(64))
        cell = Cell(params, name, prior, family, 0.1)
        judged = {s.kind: identity(cell.facts, cell.code | code_of(s)) for s in (Heun(), DDRM(), DPS())}
        benches = [Bench(params, name, prior, model, 48) for model in ("unconditional", "invfusion", "invfusion_g")]
        return judged | {bench.model: identity(bench.facts, bench.code) for bench in benches}

    def done_again(self, before: dict[str, str], values: dict[str, Any] | None = None) -> set[str]:
        return {name for name, key in self.names(values).items() if before[name] != key}

    def test_a_sampler_is_judged_again_alone(self, tree: Path) -> None:
        before = self.names()
        components.code.sources.cache_clear()
        rewrite(tree, "invfusion/samplers/dps.py", appended)
        assert self.done_again(before) == {"dps"}

    def test_a_recipe_trains_no_other_again(self, tree: Path) -> None:
        before = self.names()
        components.code.sources.cache_clear()
        (tree / "invfusion/training/recipes/other.py").write_text("class Other: ...\n")
        line = "from invfusion.training.recipes.other import Other\n"
        rewrite(tree, "invfusion/training/recipes/__init__.py", lambda text: f"{line}{text}")
        assert self.done_again(before) == set()
        components.code.sources.cache_clear()
        rewrite(tree, "invfusion/training/recipes/invfusion_g.py", appended)
        assert self.done_again(before) == {"invfusion_g"}

    def test_a_setting_of_a_recipe_trains_its_own_model_again(self) -> None:
        values = {"recipes": {"invfusion_g": {"share_at_sigma_max": 0.5}}}
        assert self.done_again(self.names(), values) == {"invfusion_g"}
