"""What a version must fulfil to become champion, judged from the evaluation that is stored with it."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from components.params import Params
from components.records import Record, available
from components.tracking import Version
from invfusion.errors import ConfigError
from invfusion.metrics import METRICS

# The families on which the operator cannot be guessed from H†y, so that knowing it must show (paper, section 4).
OPERATOR_MATTERS = ("strided_motion_blur", "matrix")
# The method that must guess the operator, with which the registered one is compared.
RIVAL = "Palette"
# What every evaluated degradation needs a number of.
NEEDED = ("psnr", "consistency_mse")


@dataclass(frozen=True)
class Gate:
    """One condition of promotion, and how it came out."""

    name: str
    passed: bool
    reason: str


def judge(records: list[Record], params: Params, champion: Version | None) -> list[Gate]:
    """Compare an evaluation with the gates and with the present champion."""
    gates, method = params.register_.gates, registered_method(params)
    before = stored(champion) if champion is not None else []
    return [
        *missing_gates(method, records, [family.kind for family in params.evaluate.families], before),
        *consistency_gates(method, records, gates.max_consistency_mse),
        *calibration_gates(method, records, gates.max_std_ratio, gates.max_calibration_gap),
        *palette_gates(method, records, gates.min_psnr_gain_over_palette),
        *champion_gates(method, records, gates.min_psnr_gain_over_champion, champion),
    ]


def companions(params: Params) -> list[str]:
    """The distilled models that start from the registered one, which are registered with it."""
    return [name for name, start in params.train.distilled.items() if start == params.register_.model]


def judged(params: Params) -> set[str]:
    """The methods whose numbers travel with a version: its models', where told the measurement, and their rival's."""
    members = {params.register_.model, *companions(params)}
    return {
        RIVAL,
        *(name for name, method in params.methods.items() if method.model in members and not method.withheld),
    }


def registered_method(params: Params) -> str:
    """The method by which the registered model draws from the posterior.

    Raises:
        ConfigError: no method does.
    """
    model = params.register_.model
    # One that is evaluated, where there are several.
    names = sorted(params.methods, key=lambda name: name not in params.evaluate.methods)
    found = [name for name in names if params.methods[name].model == model and params.methods[name].sampler is None]
    if not found:
        raise ConfigError(f"register.model: no method samples '{model}' by evaluate.sampler")
    return found[0]


def missing_gates(method: str, records: list[Record], families: Iterable[str], before: list[Record]) -> Iterator[Gate]:
    """Every number that is needed, or that the champion had, is there."""
    needed = {(method, family, metric) for family in families for metric in NEEDED}
    needed |= {r.key for r in before if r.method == method and r.value is not None}
    missing = sorted(needed - {r.key for r in records if r.value is not None})
    shown = ", ".join("/".join(key) for key in missing[:5]) + (" ..." if len(missing) > 5 else "")
    yield Gate("no missing metrics", not missing, f"missing: {shown}" if missing else f"all {len(needed)} are there")


def consistency_gates(method: str, records: list[Record], limit: float) -> Iterator[Gate]:
    """The restorations must agree with the measurements, in every degradation."""
    found = {r.degradation: r.value for r in select(records, method, "consistency_mse")}
    if not found:
        yield Gate("consistency", False, f"the evaluation has no consistency of '{method}'")
    for degradation, value in found.items():
        passed = value is not None and value <= limit
        yield Gate(f"consistency on {degradation}", passed, f"MSE {_number(value)}, allowed {limit:g}")


def calibration_gates(method: str, records: list[Record], max_ratio: float, max_gap: float) -> Iterator[Gate]:
    """Where the evaluation measured how far the model's own uncertainty can be trusted, it can.

    That are principal components' predicted over actual deviations, and the distances of the method's draws from
    calibrated ones.
    """
    found = [r for r in available(records) if METRICS[r.metric].calibration is not None]
    ratios = [r for r in found if "components" in METRICS[r.metric].needs]
    deviations = [r for r in found if r.method == method and METRICS[r.metric].calibration == "gap"]
    if not ratios and not deviations:
        yield Gate("calibration", True, "not available: the evaluation did not measure it")
    for r in ratios:
        passed = r.value is not None and 1 / max_ratio <= r.value <= max_ratio
        reason = f"std ratio {_number(r.value)}, allowed {1 / max_ratio:.3g} to {max_ratio:g}"
        yield Gate(f"calibration of {r.method} on {r.degradation}", passed, reason)
    for r in deviations:
        reason = f"{r.metric} {_number(r.value)}, allowed {max_gap:g}"
        yield Gate(f"calibration on {r.degradation}", r.value is not None and r.value <= max_gap, reason)


def palette_gates(method: str, records: list[Record], least: float) -> Iterator[Gate]:
    """Knowing the operator must pay where it cannot be guessed."""
    ours, theirs = scores(records, method), scores(records, RIVAL)
    shared = [d for d in OPERATOR_MATTERS if d in ours and d in theirs]
    if not shared:
        yield Gate("gain over Palette", False, f"the evaluation compares none of {', '.join(OPERATOR_MATTERS)}")
    for degradation in shared:
        gain, same = compared(ours[degradation], theirs[degradation])
        reason = f"{gain:+.2f} dB, required {least:+g} dB" if same else "they were measured on different measurements"
        yield Gate(f"gain over Palette on {degradation}", same and gain >= least, reason)


def champion_gates(method: str, records: list[Record], least: float, champion: Version | None) -> Iterator[Gate]:
    """Not worse than the champion, on the very measurements on which the champion was judged."""
    if champion is None:
        yield Gate("gain over the champion", True, "there is no other champion")
        return
    ours, before = scores(records, method), scores(stored(champion), method)
    other = (
        f"version {champion.number} was measured on other measurements: evaluate both on one set, or promote by hand "
        "and say why (python -m components.registry.promotion promote ... --anyway)"
    )
    shared = [degradation for degradation in ours if degradation in before]
    if not shared:
        yield Gate("gain over the champion", False, other)
    for degradation in shared:
        gain, same = compared(ours[degradation], before[degradation])
        reason = f"{gain:+.2f} dB, required {least:+g} dB" if same else other
        yield Gate(f"gain over the champion on {degradation}", same and gain >= least, reason)


# Records of the evaluation.


def scores(records: Iterable[Record], method: str) -> dict[str, Record]:
    """The PSNR of a method in each degradation."""
    return {r.degradation: r for r in select(records, method, "psnr") if r.value is not None}


def compared(ours: Record, before: Record) -> tuple[float, bool]:
    """The difference of two numbers, and whether they are of the same measurements."""
    assert ours.value is not None
    assert before.value is not None
    return ours.value - before.value, _measurements(ours) == _measurements(before)


def select(records: Iterable[Record], method: str, metric: str) -> list[Record]:
    """The records of one method and metric, in their order."""
    return [r for r in records if (r.method, r.metric) == (method, metric)]


def packed(records: Iterable[Record], methods: Collection[str]) -> str:
    """The numbers of these methods as one tag: {"method/degradation/metric": [value, low, high, n, measurements]}."""
    return json.dumps(
        {"/".join(r.key): [r.value, r.low, r.high, r.n, _measurements(r)] for r in records if r.method in methods},
        sort_keys=True,
    )


def stored(version: Version) -> list[Record]:
    """The records that `packed` made of a version's evaluation."""
    found: list[Record] = []
    for key, (value, low, high, n, measurements) in json.loads(version.tags.get("metrics", "{}")).items():
        method, degradation, metric = key.split("/")
        found.append(
            Record(
                method=method, degradation=degradation, metric=metric, value=value, low=low, high=high, n=n, nfe=None,
                measurements_sha256=measurements,
            )
        )  # fmt: skip
    return found


def _measurements(record: Record) -> str:
    """The head of the hash of the measurements, long enough to tell sets apart."""
    return str(record.measurements_sha256 or "")[:16]


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.3g}"
