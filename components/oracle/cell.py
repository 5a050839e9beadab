"""Judge some samplers on one cell of `make oracle`, in minutes instead of hours.

`python -m components.oracle.cell gaussian box_inpainting 0 mgps daps dps` takes every setting that params.oracle has of
these samplers, on a prior, a kind of family and a noise level of params.oracle, and logs for each its distance to exact
draws over the noise floor. What is judged is kept, and `make oracle` takes it where it has as many draws.
"""

import argparse
import logging
from collections.abc import Sequence

from components import cli
from components.oracle.judging import Cell, judge_cell
from components.oracle.oracle import fit_priors, samplers_to_judge
from components.oracle.records import OracleRecord
from components.params import Params
from invfusion.errors import ConfigError
from invfusion.names import kind_of, unknown

log = logging.getLogger(__name__)


def judge(params: Params, prior: str, family: str, sigma_y: float, samplers: Sequence[str]) -> list[OracleRecord]:
    """The records of exact draws, of the decoys, and of the named kinds of samplers.

    Raises:
        ConfigError: params.oracle has no such prior, family or sampler.
    """
    families = {kind_of(f): f for f in params.oracle.families}
    settings = samplers_to_judge(params.oracle.samplers)
    for what, name, known in (
        ("prior", prior, {p.name for p in params.oracle.priors}),
        ("family", family, families),
        *(("sampler", name, {kind_of(s) for s in settings}) for name in samplers),
    ):
        if name not in known:
            raise ConfigError(unknown(f"{what} of params.oracle", name, known))
    chosen = [sampler for sampler in settings if kind_of(sampler) in samplers]
    cell = Cell(params, prior, fit_priors(params)[prior], families[family], sigma_y)
    records = judge_cell(cell, chosen).records
    for record in records:
        if record.metric == "sliced_wasserstein":
            log.info("%s", line(record))
    return records


def line(record: OracleRecord) -> str:
    """One distance in words."""
    named = f"{record.method} {dict(record.settings) or ''}".strip()
    if record.value is None or not record.floor:
        return f"{named}: {record.unavailable}"
    assert record.low is not None
    assert record.high is not None
    low, high = record.low / record.floor, record.high / record.floor
    return f"{named}, {record.nfe} calls: {record.value / record.floor:.2f} of the floor ({low:.2f} to {high:.2f})"


def add_numbers(command: argparse.ArgumentParser) -> None:
    """Options that make a judgement of draws cheaper."""
    command.add_argument("--measurements", type=int, default=0, help="instead of oracle.n_measurements")
    command.add_argument("--samples", type=int, default=0, help="draws of each, instead of oracle.n_samples")


def with_numbers(options: argparse.Namespace) -> Params:
    """The parameters with what these options say."""
    params: Params = options.params
    few = {"n_measurements": options.measurements, "n_samples": options.samples}
    oracle = params.oracle.model_copy(update={name: n for name, n in few.items() if n})
    return params.model_copy(update={"oracle": oracle})


def main() -> None:
    """Judge and tell."""
    command = cli.parser(__doc__)
    command.add_argument("prior")
    command.add_argument("family")
    command.add_argument("sigma_y", type=float)
    command.add_argument("samplers", nargs="+")
    add_numbers(command)
    with cli.started(command) as options:
        judge(with_numbers(options), options.prior, options.family, options.sigma_y, options.samplers)


if __name__ == "__main__":
    main()
