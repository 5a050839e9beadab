"""Trained models beyond those of the pipeline, for the tables: each lies under a name made of all that it depends on.

A model of the pipeline that depends on the same is taken as it is; what is there is never trained twice.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast, get_args

from components.params import Params, load_params, params_from
from components.reporting.experiments import Experiment, Model, merged
from components.training import distill, train
from components.training.train import Places, launch, must_launch
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
    """A model to have: its variant or target, parameters, task, and the network that training starts from.

    start: the folder of the trained model that the network comes from; None: it is new.
    """

    variant: str
    params: Params
    start: Path | None
    task: Task
    denoiser: Denoiser

    @classmethod
    def of(cls, params: Params, variant: str, start: Path | None = None) -> "Wanted":
        """A model by its parameters. start: of a distilled model, the one before it."""
        if start is None:
            new = cast(TrainedVariant, variant)
            return cls(variant, params, None, train.task_of(params, new), train.denoiser_for(params, new))
        target = cast(DistilledTarget, variant)
        denoiser = distill.starting_point(params, target, start)
        return cls(variant, params, start, distill.task_of(params, target), denoiser)

    @cached_property
    def fingerprint(self) -> str:
        """Names all that the weights depend on but the length of the training; kept, since training changes them."""
        dataset = StagedDataset(train.STAGED, "train")
        return str(train.facts_of(self.params, self.variant, self.task, self.denoiser, dataset)["fingerprint"])

    @property
    def home(self) -> Path:
        """Where it is trained, if no other folder holds it."""
        return FOLDER / f"{self.variant}-{self.fingerprint[:12]}-{self.task.config.total_images}"

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds this very model, trained to the end."""
        try:
            manifest: Mapping[str, object] = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return False
        return (manifest.get("fingerprint"), manifest.get("nimg")) == (self.fingerprint, self.task.config.total_images)

    def train(self) -> None:
        """Train it, in as many processes as the parameters ask for."""
        if must_launch(self.params):
            start = [] if self.start is None else ["--start", str(self.start)]
            launch(self.params, self.home.name, "components.training.zoo", [self.variant, *start])
        else:
            train.run(self.params, self.variant, self.task, self.denoiser, Places.under(self.home))


@dataclass
class Zoo:
    """The models of one experiment. params: as the experiment changes them."""

    name: str
    experiment: Experiment
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
        for folder in (train.MODELS / wanted.variant, wanted.home / "model"):
            if wanted.is_in(folder):
                return folder
        if self.trains:
            nimg = wanted.task.config.total_images
            log.info("training '%s' for %s: %s images, into %s", name, self.name, f"{nimg:,}", wanted.home)
            wanted.train()
        return wanted.home / "model"

    def wanted(self, name: str) -> Wanted | None:
        """What a model is to be; None where it starts from one that is missing."""
        spec = self.experiment.models.get(name) or Model(train=_variant(name))
        params = self.params
        if spec.params:
            changed = merged(params.model_dump(mode="json", by_alias=True), spec.params)
            params = params_from(changed, f"the model '{name}' of experiment '{self.experiment.title}'")
        if spec.train not in TARGETS:
            return Wanted.of(params, spec.train)
        before = params.distill.model_before(cast(DistilledTarget, spec.train))
        start = Zoo(self.name, self.experiment, params, self.trains).folder(before)
        return Wanted.of(params, spec.train, start) if start.exists() else None


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


def main() -> None:
    """Train one model; what torchrun starts in each process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("variant")
    parser.add_argument("--start", type=Path, help="of a distilled model, the folder of the one before it")
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        Wanted.of(load_params(arguments.params), arguments.variant, arguments.start).train()
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
