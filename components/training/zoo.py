"""Trained models beyond those of the pipeline, for the tables: each lies under a name made of all that it depends on.

A model of the pipeline that depends on the same is taken as it is; what is there is never trained twice. Imported
weights of the published code (components.registry.import_checkpoint) are taken for the model of their network and
noise.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from components import cli
from components.at_once import run_at_once, trainings_at_once
from components.children import on_stop_signals
from components.device import is_on_gpu, n_processes
from components.params import Params, params_from, read_values
from components.paths import MODELS, STAGED
from components.reporting.experiments import Experiment, Model, load_experiment
from components.training import train
from components.training.identity import identity, settings
from components.training.train import STOP_S, Places, launch, must_launch, words_for
from invfusion.data import StagedDataset
from invfusion.errors import CheckpointError, ConfigError, InvFusionError
from invfusion.models import Denoiser, DenoiserConfig, load_config, load_manifest
from invfusion.training.recipes import RECIPES

log = logging.getLogger(__name__)

FOLDER = Path("artifacts/zoo")
MODULE = "components.training.zoo"


@dataclass(frozen=True)
class Wanted:
    """A model to have: its recipe's name, and its parameters.

    start: the folder of the model that its training starts from; None: it starts from fresh weights.
    """

    name: str
    params: Params
    start: Path | None = None

    @property
    def network(self) -> Denoiser:
        """Before training, made anew: a list of models to train holds no weights."""
        return train.network(self.params, self.name, self.start)

    @cached_property
    def images(self) -> int:
        """The length of its training."""
        return self.params.task(self.name).config.total_images

    @cached_property
    def fingerprint(self) -> str:
        """Names all that the weights depend on but the length of the training; kept, since training changes them."""
        dataset = StagedDataset(STAGED, "train")
        return str(train.facts_of(self.params, self.name, self.network, dataset, self.start)["fingerprint"])

    @property
    def home(self) -> Path:
        """Where it is trained, if no other folder holds it."""
        return FOLDER / f"{self.name}-{self.fingerprint[:12]}-{self.images}"

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds this very model, trained to the end, or imported weights of its network that are said
        to have seen its noise."""
        manifest = _manifest(folder)
        if "imported" in manifest:
            noise = settings(self.params.task(self.name))["noise"]
            return manifest.get("noise") == noise and _network(load_config(folder)) == _network(self.network.config)
        return (manifest.get("fingerprint"), manifest.get("nimg")) == (self.fingerprint, self.images)

    @property
    def folder(self) -> Path:
        """Where it lies; it does not exist where the model is yet to be trained."""
        return next((f for f in (MODELS / self.name, self.home / "model") if self.is_in(f)), self.home / "model")

    @property
    def arguments(self) -> list[str]:
        """What this module's command takes to train it, but for the parameters."""
        return [self.name, *([] if self.start is None else ["--starts-from", str(self.start)])]

    def check(self) -> None:
        """Raise `ConfigError` where it cannot be trained here."""
        self.params.train.check_sharing(n_processes(self.params))

    def train(self) -> None:
        """Train it, in as many processes as the parameters ask for."""
        if must_launch(self.params):
            launch(self.params, self.home.name, MODULE, self.arguments)
        else:
            train.run(self.params, self.name, self.network, Places.under(self.home), self.start)


def imported_from(folder: Path) -> str | None:
    """The file of the published code that a model's weights come from; None where it was trained here or is missing."""
    origin = _manifest(folder).get("imported")
    return str(origin.get("file")) if isinstance(origin, Mapping) else None


def _manifest(folder: Path) -> Mapping[str, object]:
    """What is written beside a model; empty where there is none."""
    try:
        return load_manifest(folder) if folder.is_dir() else {}
    except CheckpointError:
        return {}


def _network(config: DenoiserConfig) -> DenoiserConfig:
    """What the weights depend on: all but dropout, which is for training alone."""
    return config.model_copy(update={"dropout": 0.0})


@dataclass
class Zoo:
    """The models of one experiment. params: as the experiment changes them."""

    name: str
    experiment: Experiment
    params: Params

    @classmethod
    def of(cls, params: Params, name: str, split: str) -> "Zoo":
        """An experiment's, with the classes of a staged split.

        Raises:
            ConfigError: there is no such experiment, or the parameters cannot be changed as it does.
            DataError: the split is not staged.
        """
        experiment = load_experiment(name)
        n_classes = len(StagedDataset(STAGED, split).class_names)
        return cls(name, experiment, experiment.applied(params, n_classes))

    @property
    def names(self) -> list[str]:
        """Of the models that its methods read out."""
        return list(dict.fromkeys(method.model for method in self.params.methods.values() if method.model))

    def provide(self) -> tuple[dict[str, Path], dict[str, str]]:
        """The folders of the models that are there, and why others are not."""
        found: dict[str, Path] = {}
        missing: dict[str, str] = {}
        for name in self.names:
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
        """The folder of one model; it does not exist where the model is yet to be trained."""
        wanted = self.wanted(name)
        return FOLDER / f"{name} (the model that it starts from is missing)" if wanted is None else wanted.folder

    def wanted(self, name: str) -> Wanted | None:
        """What a model is to be; None where it starts from one that is missing."""
        spec, source, before = self._spec(name)
        if before is None:
            return Wanted(spec.train, source.params)
        start = source.folder(before)
        return Wanted(spec.train, source.params, start) if start.exists() else None

    def next_training(self, name: str) -> Wanted | None:
        """What is to be trained next for a model, which may be what it starts from; None where the model is there."""
        wanted = self.wanted(name)
        if wanted is None:
            _, source, before = self._spec(name)
            assert before is not None
            return source.next_training(before)
        return None if wanted.folder.exists() else wanted

    def _spec(self, name: str) -> tuple[Model, "Zoo", str | None]:
        """How a model is trained, the zoo with its own parameters, and the model there that it starts from."""
        spec = self.experiment.models.get(name) or Model(train=_known(name))
        params = self.experiment.changed_for(name, self.params)
        return spec, Zoo(self.name, self.experiment, params), params.starts_from(spec.train)


def train_missing(zoos: Sequence[Zoo]) -> None:
    """Train what is missing of several zoos; on a CPU with room, those that need nothing of each other at once.

    Raises:
        InvFusionError: a training failed; what was trained by then is kept.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, with checkpoints written.
    """
    params = zoos[0].params
    # On a GPU a table holds the devices of one training.
    at_once = 1 if is_on_gpu(params.runtime.device) else trainings_at_once(params, 0)
    refused: set[Path] = set()
    while wanted := [one for one in _next_trainings(zoos) if one.home not in refused]:
        for one in list(wanted):
            try:
                one.check()
            except ConfigError as error:
                log.warning("the model '%s' cannot be trained here: %s", one.name, error)
                refused.add(one.home)
                wanted.remove(one)
        if at_once == 1 or len(wanted) <= 1:
            for one in wanted:
                log.info("training '%s': %s images, into %s", one.name, f"{one.images:,}", one.home)
                one.train()
        else:
            _train_at_once(wanted, at_once)
        for one in wanted:
            if not one.folder.exists():
                raise InvFusionError(
                    f"{one.home} was trained, but of other code or data than when it began: what it depends on was "
                    "changed in the meantime. The same command trains it as it is now"
                )


def _train_at_once(wanted: Sequence[Wanted], at_once: int) -> None:
    words = {one.home.name: words_for(MODULE, one.arguments, one.params, one.home.name) for one in wanted}
    commands = {name: [sys.executable, *of_one] for name, of_one in words.items()}
    with on_stop_signals(lambda number: sys.exit(128 + number)):
        code = run_at_once(commands, {}, at_once, os.environ, STOP_S, share_threads=True)
    if code:
        raise InvFusionError(
            "not all models could be trained; the reason stands above. What is trained is kept, and the same command "
            "goes on"
        )


def _next_trainings(zoos: Sequence[Zoo]) -> list[Wanted]:
    """What can be trained now, each model once."""
    found: dict[Path, Wanted] = {}
    for zoo in zoos:
        for name in zoo.names:
            # What cannot be made here is told by `provide`.
            with contextlib.suppress(ConfigError):
                if wanted := zoo.next_training(name):
                    found.setdefault(wanted.home, wanted)
    return list(found.values())


def pipeline_models(params: Params, experiment: Experiment) -> list[str]:
    """The models that the experiment takes from the pipeline as it is."""
    # A pipeline without classes has no model of a class-conditional experiment, however many classes that has.
    changed = experiment.applied(params, max(params.model.n_classes, 1))
    names = [
        experiment.row(name).model or params.methods[experiment.row(name).method].model for name in experiment.names
    ]
    wanted = dict.fromkeys(name for name in names if name in params.models and name not in experiment.models)
    return [name for name in wanted if name is not None and _is_same(name, params, changed)]


def _is_same(name: str, before: Params, after: Params) -> bool:
    """Whether a model, and what it starts from, depend on the same in both."""
    start = before.starts_from(name)
    if start != after.starts_from(name) or identity(before, name) != identity(after, name):
        return False
    return start is None or _is_same(start, before, after)


def _known(name: str) -> str:
    if name not in RECIPES:
        raise ConfigError(f"the experiment needs the model '{name}', but does not say how to train it (models:)")
    return name


def params_of_experiment(path: str) -> Params:
    """An experiment's parameters, of a file. They need not be a pipeline's: few tables draw with what is registered."""
    return params_from(read_values(path), path)


def main() -> None:
    """Train one model: what a table starts for each, and torchrun in each process."""
    command = cli.parser(main.__doc__)
    command.add_argument("model", choices=RECIPES)
    # Not --start: torchrun would take it for its own --start-method.
    command.add_argument("--starts-from", type=Path, help="the folder of the model that it starts from")
    with cli.started(command, read=params_of_experiment) as options:
        Wanted(options.model, options.params, options.starts_from).train()


if __name__ == "__main__":
    main()
