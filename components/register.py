"""Register the trained model in MLflow and decide by the gates whether it becomes the champion.

The registry is rebuilt from files: a version is keyed by the hash of its checkpoints, so registering the same ones
again adds nothing, and a clone without a registry makes one. The decision is stored with the version and is
not taken again while checkpoints, evaluation and gates stay the same; so an alias moved by hand stays where it is.
"""

import argparse
import hashlib
import importlib.metadata
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.tracking import Package, Registry, Version, git_revision
from invfusion.config import Params, load_params
from invfusion.errors import CheckpointError, ConfigError, DataError, InvFusionError
from invfusion.operators import spec_to_json
from invfusion.rng import generator, generators, randn

log = logging.getLogger(__name__)

MODELS = Path("artifacts/models")
EVALUATION = Path("reports/evaluation.json")
SUMMARY = Path("reports/registration.json")
# The model that restores, and its distilled companions where they were trained.
MEMBERS = ("invfusion", "mmse", "nppc")
# The families on which the operator cannot be guessed from H†y, so that knowing it must show (paper, section 4).
OPERATOR_MATTERS = ("strided_motion_blur", "matrix")
REQUIREMENTS = ("mlflow", "torch", "numpy", "scipy", "einops", "pydantic", "safetensors", "pandas")
LICENCE = "Apache-2.0"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Gate:
    """One condition of promotion, and how it came out."""

    name: str
    passed: bool
    reason: str


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
        CheckpointError: there is no trained InvFusion model.
        DataError: the evaluation is missing.
        ServiceError: MLflow does not answer.
    """
    checkpoints = find_checkpoints(MODELS)
    checkpoint = checkpoint_hash(checkpoints)
    records = read_records(EVALUATION)
    registry = Registry(params, params.register_.name)
    known = registry.find(checkpoint)
    version = known or registry.add(
        package(params, checkpoints), describe(params, checkpoint, records), metrics_of(records)
    )
    gates = decide(registry, version, records, params)
    champion = registry.holder("champion")
    is_champion = champion is not None and champion.number == version.number
    result = Registration(registry.name, version.number, checkpoint, known is None, is_champion, tuple(gates))
    write_summary(result)
    log.info("%s", result)
    return result


def rollback(params: Params) -> str:
    """Give `champion` back to the version that held it before the present one; returns that version's number."""
    registry = Registry(params, params.register_.name)
    champion = registry.holder("champion")
    number = champion.tags.get("previous_champion") if champion else None
    if not number:
        raise ConfigError(f"models:/{registry.name} has no earlier champion to go back to")
    registry.give("champion", Version(number, {}))
    return number


# Gates.


def decide(registry: Registry, version: Version, records: list[Record], params: Params) -> list[Gate]:
    """The gates of a version: as decided before for the same evaluation and gates, or judged now."""
    basis = _sha256(json.dumps([records, params.register_.gates.model_dump()], sort_keys=True).encode())
    if version.tags.get("decided_on") == basis:
        return [Gate(**gate) for gate in json.loads(version.tags["gates"])]
    champion = registry.holder("champion")
    if champion and champion.number == version.number:
        champion = None
    gates = judge(records, params, champion)
    registry.give("challenger", version)
    if all(gate.passed for gate in gates):
        registry.give("champion", version)
        registry.tag(version, {"previous_champion": champion.number} if champion else {})
    # Last, so that a crash in between leads to a fresh decision.
    outcome = json.dumps([asdict(gate) for gate in gates])
    registry.tag(version, {"scores": scores_text(records), "gates": outcome, "decided_on": basis})
    return gates


def judge(records: list[Record], params: Params, champion: Version | None) -> list[Gate]:
    """Compare an evaluation with the gates and with the present champion."""
    gates = params.register_.gates
    return [
        *consistency_gates(records, gates.max_consistency_mse),
        *palette_gates(records, gates.min_psnr_gain_over_palette),
        *champion_gates(records, gates.min_psnr_gain_over_champion, champion),
    ]


def consistency_gates(records: list[Record], limit: float) -> Iterator[Gate]:
    """The restorations must agree with the measurements, in every degradation."""
    found = {r["degradation"]: r["value"] for r in select(records, "invfusion", "consistency_mse")}
    if not found:
        yield Gate("consistency", False, f"{EVALUATION} has no consistency of 'invfusion'")
    for degradation, value in found.items():
        passed = value is not None and value <= limit
        yield Gate(f"consistency on {degradation}", passed, f"MSE {_number(value)}, allowed {limit:g}")


def palette_gates(records: list[Record], least: float) -> Iterator[Gate]:
    """Knowing the operator must pay where it cannot be guessed."""
    ours, theirs = scores(records, "invfusion"), scores(records, "palette")
    shared = [d for d in OPERATOR_MATTERS if d in ours and d in theirs]
    if not shared:
        yield Gate("gain over Palette", False, f"{EVALUATION} compares none of {', '.join(OPERATOR_MATTERS)}")
    for degradation in shared:
        gain = ours[degradation]["psnr"] - theirs[degradation]["psnr"]
        same = ours[degradation]["measurements"] == theirs[degradation]["measurements"]
        reason = f"{gain:+.2f} dB, required {least:+g} dB" if same else "they were measured on different measurements"
        yield Gate(f"gain over Palette on {degradation}", same and gain >= least, reason)


def champion_gates(records: list[Record], least: float, champion: Version | None) -> Iterator[Gate]:
    """Not worse than the champion, wherever both were measured on the same measurements."""
    if champion is None:
        yield Gate("gain over the champion", True, "there is no other champion")
        return
    before: dict[str, Any] = json.loads(champion.tags.get("scores", "{}"))
    comparable = {
        degradation: score["psnr"] - before[degradation]["psnr"]
        for degradation, score in scores(records, "invfusion").items()
        if degradation in before and before[degradation]["measurements"] == score["measurements"]
    }
    if not comparable:
        yield Gate("gain over the champion", True, "not comparable: the champion saw other measurements")
    for degradation, gain in comparable.items():
        reason = f"{gain:+.2f} dB, required {least:+g} dB"
        yield Gate(f"gain over the champion on {degradation}", gain >= least, reason)


def scores(records: Iterable[Record], method: str) -> dict[str, dict[str, Any]]:
    """The PSNR of a method in each degradation, with the hash of the measurements it was computed on."""
    return {
        r["degradation"]: {"psnr": r["value"], "measurements": r["measurements_sha256"]}
        for r in select(records, method, "psnr")
        if r["value"] is not None
    }


def scores_text(records: list[Record]) -> str:
    """The scores as a version tag, by which a later challenger compares itself."""
    return json.dumps(scores(records, "invfusion"), sort_keys=True)


def select(records: Iterable[Record], method: str, metric: str) -> list[Record]:
    """The records of one method and metric, in their order."""
    return [r for r in records if (r["method"], r["metric"]) == (method, metric)]


# The model and what is stored with it.


def find_checkpoints(folder: Path) -> dict[str, Path]:
    """The checkpoint folders that make the registered model."""
    if not (folder / "invfusion" / "model.safetensors").exists():
        raise CheckpointError(f"{folder / 'invfusion'} holds no trained model; run `dvc repro train@invfusion` first")
    return {name: folder / name for name in MEMBERS if (folder / name / "model.safetensors").exists()}


def checkpoint_hash(checkpoints: Mapping[str, Path]) -> str:
    """The sha256 of the weights and architectures; where and when they were made does not count."""
    digest = hashlib.sha256()
    for name, folder in sorted(checkpoints.items()):
        for file in ("config.json", "model.safetensors"):
            digest.update(f"{name}/{file} {_sha256((folder / file).read_bytes())}\n".encode())
    return digest.hexdigest()


def read_records(path: Path) -> list[Record]:
    """The flat list of evaluation records."""
    try:
        records: list[Record] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); run `dvc repro evaluate` first") from error
    return records


def metrics_of(records: Iterable[Record]) -> dict[str, float]:
    """The evaluation as MLflow metrics named method/degradation/metric."""
    return {f"{r['method']}/{r['degradation']}/{r['metric']}": r["value"] for r in records if r["value"] is not None}


def describe(params: Params, checkpoint: str, records: list[Record]) -> dict[str, str]:
    """The facts that travel with a version as its tags."""
    manifest = json.loads((MODELS / "invfusion" / "manifest.json").read_text())
    hashes = sorted({r["measurements_sha256"] for r in records if r["measurements_sha256"]})
    return {
        "checkpoint": checkpoint,
        "data.name": params.data.name,
        "data.digest": str(manifest.get("data_digest", "unknown")),
        "git.revision": git_revision(),
        "measurements": _sha256("\n".join(hashes).encode()),
        "degradation": params.degradation.model_dump_json(),
        "licence": LICENCE,
    }


def package(params: Params, checkpoints: Mapping[str, Path]) -> Package:
    """The model as MLflow packs it: checkpoints, the library, and an example request."""
    import invfusion

    return Package(
        code=Path(__file__).with_name("restoration_model.py"),
        library=Path(invfusion.__file__).parent,
        checkpoints=checkpoints,
        columns=[
            ("y", "array<double>", True),
            ("operator", "string", True),
            ("sigma_y", "array<double>", False),
            ("class_labels", "array<long>", False),
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
        requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
    )


def example_request(params: Params) -> dict[str, Any]:
    """One measurement of a noise image by an operator of the first evaluated family."""
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    operator = params.evaluate.families[0].sample(
        batch_size=1, image_shape=shape, generator=generator(params.seed, "register/operator")
    )
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


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.3g}"


def main() -> None:
    """Register, or with `--rollback` give the champion's place back to its predecessor."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rollback", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        params = load_params()
        if arguments.rollback:
            log.info("champion is version %s again", rollback(params))
        else:
            register(params)
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
