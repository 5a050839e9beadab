"""Trained models beyond those of the pipeline, for the tables: each lies under a name made of all that it depends on.

A model of the pipeline that depends on the same is taken as it is; what is there is never trained twice.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from components import distill, train
from components.experiments import Experiment, Model, load_experiment, merged
from components.train import Places, launch, must_launch
from invfusion.config import Params, load_params, params_from
from invfusion.data import StagedDataset
from invfusion.errors import ConfigError, InvFusionError
from invfusion.models import Denoiser
from invfusion.training.config import DistilledTarget, TrainedVariant
from invfusion.training.task import Task

log = logging.getLogger(__name__)

FOLDER = Path("artifacts/zoo")
TARGETS: tuple[str, ...] = get_args(DistilledTarget)


@dataclass(frozen=True)
class Wanted:
    """A model to have: its variant or target, parameters, task, and the network that training starts from."""

    variant: str
    params: Params
    task: Task
    denoiser: Denoiser

    @property
    def fingerprint(self) -> str:
        """Names everything that the weights depend on but the length of the training."""
        dataset = StagedDataset(train.STAGED, "train")
        return str(train.facts_of(self.params, self.variant, self.task, self.denoiser, dataset)["fingerprint"])


@dataclass
class Zoo:
    """The models of one experiment. base: the parameters before the experiment changed them."""

    name: str
    experiment: Experiment
    base: Params
    params: Params
    trains: bool = True

    def provide(self, names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
        """The folders of the models, trained where they are missing, and what is missing where nothing is trained."""
        found: dict[str, Path] = {}
        missing: dict[str, str] = {}
        for name in dict.fromkeys(names):
            try:
                folder = self.folder(name)
            except ConfigError as error:
                missing[name] = f"the model '{name}' cannot be made here: {error}"
                continue
            if folder.exists():
                found[name] = folder
            else:
                missing[name] = f"the model '{name}' is not trained; its place is {folder}"
        return found, missing

    def folder(self, name: str) -> Path:
        """The folder of one model; it does not exist where it would have to be trained and nothing is."""
        wanted = self.wanted(name)
        if wanted is None:
            return FOLDER / f"{name} (the model that it starts from is missing)"
        fingerprint, nimg = wanted.fingerprint, wanted.task.config.total_images
        home = FOLDER / f"{wanted.variant}-{fingerprint[:12]}-{nimg}"
        for folder in (train.MODELS / wanted.variant, home / "model"):
            if _is(folder, fingerprint, nimg):
                return folder
        if self.trains:
            log.info("training '%s' for %s: %s images, into %s", name, self.name, f"{nimg:,}", home)
            self._train(name, wanted, home)
        return home / "model"

    def _train(self, name: str, wanted: Wanted, home: Path) -> None:
        if must_launch(self.base):
            launch(self.base, home.name, "components.zoo", [self.name, name])
        else:
            train.run(wanted.params, wanted.variant, wanted.task, wanted.denoiser, Places.under(home))

    def wanted(self, name: str) -> Wanted | None:
        """What a model is to be; None where it starts from one that is missing."""
        spec = self.experiment.models.get(name) or Model(train=_variant(name))
        params = self.params
        if spec.params:
            changed = merged(params.model_dump(mode="json", by_alias=True), spec.params)
            params = params_from(changed, f"the model '{name}' of experiment '{self.experiment.title}'")
        if spec.train not in TARGETS:
            variant = cast(TrainedVariant, spec.train)
            return Wanted(variant, params, train.task_of(params, variant), train.denoiser_for(params, variant))
        target = cast(DistilledTarget, spec.train)
        start = Zoo(self.name, self.experiment, self.base, params, self.trains).folder(
            params.distill.model_before(target)
        )
        if not start.exists():
            return None
        return Wanted(target, params, distill.task_of(params, target), distill.starting_point(params, target, start))


def pipeline_models(params: Params, experiment: Experiment) -> list[str]:
    """The stages that train what the experiment takes from the pipeline as it is."""
    changes = set(experiment.params) | ({"model", "train"} if experiment.class_conditional else set())
    names = [
        experiment.row(name).model or params.methods[experiment.row(name).method].model for name in experiment.names
    ]
    found = []
    for name in dict.fromkeys(name for name in names if name and name not in experiment.models):
        depends_on = {"model", "train"} | (set() if name == "unconditional" else {"noise", "degradation"})
        if not changes & depends_on:
            found += [f"train@{name}"] if name in params.train.variants else []
            found += [f"distill@{name}"] if name in params.distill.targets else []
    return found


def _variant(name: str) -> TrainedVariant | DistilledTarget:
    known = (*train.VARIANTS, *TARGETS)
    if name not in known:
        raise ConfigError(f"the experiment needs the model '{name}', but does not say how to train it (models:)")
    return cast(TrainedVariant, name)


def _is(folder: Path, fingerprint: str, nimg: int) -> bool:
    """Whether a folder holds this very model, trained to the end."""
    try:
        manifest: Mapping[str, object] = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return (manifest.get("fingerprint"), manifest.get("nimg")) == (fingerprint, nimg)


def main() -> None:
    """Train one model of an experiment; what torchrun starts in each process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("experiment")
    parser.add_argument("model")
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        base, experiment = load_params(arguments.params), load_experiment(arguments.experiment)
        n_classes = len(StagedDataset(train.STAGED, "train").class_names)
        Zoo(arguments.experiment, experiment, base, experiment.applied(base, n_classes)).folder(arguments.model)
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
