"""Register the trained model in MLflow and decide by the gates whether it becomes the champion.

The registry is rebuilt from files: a version is keyed by the hash of its checkpoints, so registering the same ones
again adds nothing, and a clone without a registry makes one. The decision is stored with the version and is
not taken again while checkpoints, evaluation and gates stay the same; so an alias moved by hand stays where it is.
"""

import hashlib
import importlib.metadata
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components import cli
from components.checkpoints import file_digests
from components.params import Params
from components.paths import EVALUATION, MODELS
from components.records import Record, read_records
from components.registry import MAIN
from components.registry.gates import Gate, companions, judge, judged, packed, registered_method
from components.registry.page import PICTURE, Facts, page, picture
from components.registry.promotion import PROMOTED, Decision, move, present
from components.tracking import Package, Registry, Version, git_revision
from invfusion.data.manifest import read_manifest
from invfusion.errors import CheckpointError, DataError
from invfusion.measuring import Streams, draw_operator
from invfusion.metrics import METRICS
from invfusion.models import load_denoiser, load_manifest
from invfusion.operators import spec_to_json
from invfusion.rng import generators, randn
from invfusion.training.recipes import RECIPES

log = logging.getLogger(__name__)

SUMMARY = Path("reports/registration.json")
# What a registered model's own code imports beside the library.
OF_SERVING = ("mlflow", "pandas")
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Registration:
    """What `register` did."""

    name: str
    version: str
    checkpoint: str
    is_new: bool
    is_champion: bool
    gates: tuple[Gate, ...]

    def __str__(self) -> str:
        state = "champion" if self.is_champion else "not the champion"
        lines = [f"models:/{self.name}/{self.version}: {state}{'' if self.is_new else ' (registered before)'}"]
        return "\n".join(lines + [f"  {'passed' if g.passed else 'FAILED'}  {g.name}: {g.reason}" for g in self.gates])


def register(params: Params) -> Registration:
    """Register artifacts/models once, give it the alias `challenger`, and `champion` where every gate passes.

    Reads reports/evaluation.json; writes reports/registration.json (no run ids, no times).

    Raises:
        CheckpointError: there is no trained InvFusion model, or a folder is damaged or holds another model.
        DataError: the evaluation is missing.
        ServiceError: MLflow does not answer.
    """
    checkpoints = find_checkpoints(MODELS, params)
    records = read_records(EVALUATION)
    check_checkpoints(checkpoints, params)
    checkpoint = checkpoint_hash(checkpoints)
    registry = Registry(params, params.register_.name)
    known, before = registry.find(checkpoint), registry.holder("champion")
    version = known or add(registry, params, checkpoints, records)
    rival = None if before is None or before.number == version.number else before
    registry.present(version, page(params, registry.name, records, rival, facts(version.tags)))
    gates = decide(registry, version, records, params)
    champion = registry.holder("champion")
    is_champion = champion is not None and champion.number == version.number
    result = Registration(registry.name, version.number, checkpoint, known is None, is_champion, tuple(gates))
    write_summary(result)
    log.info("%s", result)
    return result


def add(registry: Registry, params: Params, checkpoints: Mapping[str, Path], records: list[Record]) -> Version:
    """A new version, with its numbers and its picture."""
    tags = describe(params, checkpoint_hash(checkpoints), records)
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / PICTURE
        files = [shown] if picture(params, shown) else []
        return registry.add(package(params, checkpoints), tags, metrics_of(records, registered_method(params)), files)


# The decision.


def decide(registry: Registry, version: Version, records: list[Record], params: Params) -> list[Gate]:
    """The gates of a version: as decided before for the same evaluation and gates, or judged now."""
    basis = _sha256(
        json.dumps([[r.as_json() for r in records], params.register_.gates.model_dump()], sort_keys=True).encode()
    )
    if version.tags.get("decided_on") == basis:
        return [Gate(**gate) for gate in json.loads(version.tags["gates"])]
    champion = present(registry)
    is_champion = champion is not None and champion.number == version.number
    gates = judge(records, params, None if is_champion else champion)
    registry.tag(version, {"metrics": packed(records, judged(params)), "measurements": measurements_hash(records)})
    registry.give("challenger", version)
    if all(gate.passed for gate in gates) and not is_champion:
        move(registry, champion, version.number, PROMOTED, Decision("every gate passed when it was registered"))
    # Last, so that a crash in between leads to a fresh decision.
    registry.tag(version, {"gates": json.dumps([asdict(gate) for gate in gates]), "decided_on": basis})
    return gates


# The model and what is stored with it.


def find_checkpoints(folder: Path, params: Params) -> dict[str, Path]:
    """The checkpoint folders that make the registered model, by their names in the package: beside its own those of its
    companions where they were trained."""
    model = params.register_.model
    if not (folder / model / "model.safetensors").exists():
        raise CheckpointError(f"{folder / model} holds no trained model; run `dvc repro train@{model}` first")
    return {MAIN: folder / model} | {name: folder / name for name in companions(params) if (folder / name).is_dir()}


def check_checkpoints(checkpoints: Mapping[str, Path], params: Params) -> None:
    """Load every model, and compare it with what its folder's name and the parameters say.

    Raises:
        CheckpointError: a folder is incomplete or damaged, or holds another model than its name says.
    """
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    for name, folder in checkpoints.items():
        expected = params.register_.model if name == MAIN else name
        trained_as = load_manifest(folder).get("name", expected)
        config = load_denoiser(folder).config
        found = {
            f"it was trained as '{trained_as}'": trained_as != expected,
            f"its network is '{config.variant}'": name == MAIN and config.variant != "invfusion",
            f"it has {config.n_components} components": (config.n_components > 0) != has_components(expected),
            f"it makes images {config.image_shape}, data.image_size asks for {shape}": config.image_shape != shape,
        }
        wrong = [reason for reason, is_wrong in found.items() if is_wrong]
        if wrong:
            raise CheckpointError(
                f"{folder} does not hold this project's model '{expected}': {', '.join(wrong)}; train it anew, or "
                "bring back the folder with `dvc checkout`"
            )


def has_components(model: str) -> bool:
    """Whether a trained model predicts principal components."""
    return "n_components" in RECIPES[model].model_fields


def checkpoint_hash(checkpoints: Mapping[str, Path]) -> str:
    """The sha256 of the weights and architectures; where and when they were made does not count."""
    digest = hashlib.sha256()
    for name, folder in sorted(checkpoints.items()):
        for file, content in file_digests(folder).items():
            digest.update(f"{name}/{file} {content}\n".encode())
    return digest.hexdigest()


def metrics_of(records: Iterable[Record], method: str) -> dict[str, float]:
    """The main metrics of a method, which MLflow groups by the word before the slash: metric/degradation."""
    return {
        f"{r.metric}/{r.degradation}": r.value
        for r in records
        if r.value is not None and r.method == method and METRICS[r.metric].main
    }


def facts(tags: Mapping[str, str]) -> Facts:
    """What a version's page tells from its tags."""
    keys = ("git.revision", "licence", "data.licence", "data.digest", "noise")
    return Facts(*(tags.get(key, "unknown") for key in keys))


def describe(params: Params, checkpoint: str, records: list[Record]) -> dict[str, str]:
    """The facts that travel with a version as its tags."""
    manifest = load_manifest(MODELS / params.register_.model)
    return {
        "checkpoint": checkpoint,
        "data.name": params.data.name,
        "data.digest": str(manifest.get("data_digest", "unknown")),
        "git.revision": git_revision(),
        "data.licence": data_licence(params),
        "measurements": measurements_hash(records),
        "metrics": packed(records, judged(params)),
        "params": params.model_dump_json(by_alias=True, exclude={"runtime"}),
        "degradation": params.degradation.model_dump_json(),
        "noise": json.dumps(manifest["noise"]) if "noise" in manifest else "unknown",
        "licence": LICENCE,
    }


def measurements_hash(records: Iterable[Record]) -> str:
    """One hash for all the frozen measurement sets of an evaluation."""
    hashes = sorted({r.measurements_sha256 for r in records if r.measurements_sha256})
    return _sha256("\n".join(hashes).encode())


def data_licence(params: Params) -> str:
    """As the dataset's manifest states it; a model may be registered where the shards are not."""
    try:
        return read_manifest(params.data.shards).licence
    except DataError:
        return "unknown"


def package(params: Params, checkpoints: Mapping[str, Path]) -> Package:
    """The model as MLflow packs it: checkpoints, the library, and an example request."""
    import invfusion

    return Package(
        code=Path(__file__).with_name("restoration_model.py"),
        library=Path(invfusion.__file__).parent,
        checkpoints=checkpoints,
        main=MAIN,
        sampler=params.evaluate.sampler.model_dump(mode="json"),
        columns=[
            ("y", "array<double>", False),
            ("operator", "string", False),
            ("sigma_y", "array<double>", False),
            ("class_labels", "array<long>", False),
            *((name, "binary", False) for name in ("picture", "mask", "blur")),
            *((name, "string", False) for name in ("boundary", "filter")),
            *((name, "double", False) for name in ("blur_sigma", "sigma")),
            ("scale", "long", False),
        ],
        parameters={
            "method": "sample",
            "n_steps": params.evaluate.sampler.n_steps,
            "seed": 0,
            "n_samples": 1,
            "guidance": float(params.evaluate.guidance),
        },
        example=example_request(params),
        # MLflow runs the example while it logs the model: one network call, not a whole trajectory.
        example_parameters={"method": "mmse"},
        requirements=[f"{name}=={importlib.metadata.version(name)}" for name in sorted({*OF_SERVING, *of_library()})],
    )


def of_library() -> Iterator[str]:
    """The packages that the library alone needs, as the project declares them."""
    for line in importlib.metadata.requires("invfusion") or ():
        if ";" not in line and (name := re.match(r"[\w.-]+", line)):
            yield name.group()


def example_request(params: Params) -> dict[str, Any]:
    """One measurement of a noise image by an operator of the first evaluated family."""
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    family, streams = params.evaluate.families[0], Streams("register/operator")
    operator = draw_operator(family, 1, shape, 0, params.seed, streams)
    x = randn(shape, generators(params.seed, "register/image", [0])).clip(-1, 1)
    return {"y": operator.H(x).double().flatten().tolist(), "operator": spec_to_json(operator.to_spec())}


def write_summary(result: Registration) -> None:
    """reports/registration.json: the decision without anything that differs between two registries' histories."""
    content = {
        "model": result.name,
        "checkpoint": result.checkpoint,
        "passed": all(gate.passed for gate in result.gates),
        "gates": [asdict(gate) for gate in result.gates],
    }
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_text(json.dumps(content, indent=2) + "\n")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Register what was trained; components.registry.promotion promotes and rolls back by hand."""
    with cli.started(cli.parser(main.__doc__)) as options:
        register(options.params)


if __name__ == "__main__":
    main()
