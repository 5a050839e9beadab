"""Tables of docs/performance.md, made from the JSON of the last runs.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; everything else in the document is written by hand.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Record, rounded
from benchmarks.scale.curves import LEAST_MIB, dominant, exponent

PERFORMANCE = Path("docs/performance.md")
NOT_MEASURED = "not measured"
PAPER = ("ffhq64", "imagenet64", "ffhq256")
# A lease's names of training and of sampling, and what it says of their speed.
LEASED = {"training": ("train", "images_per_s"), "sampling": ("sample", "images_per_s_at_63_calls")}
# How the network ran -> the end of the case's name.
WAYS = {"float32": "-fp32", "float32 with TF32": "-tf32", "bf16": "", "bf16, layers compiled": "-layers"}
# Of a step or a call: what else may have been measured, and its column.
OTHER_SETTINGS = {
    "bf16_ms": "plain / bf16",
    "compiled_ms": "plain / compiled",
    "compiled_bf16_ms": "plain / compiled bf16",
}
# Written before the first measurement: what, goal, prediction, case of a lease, and its field.
PREDICTIONS = (
    ("FFHQ64 training, eager, images/s", "", "about 750", "train-ffhq64", "images_per_s"),
    ("FFHQ64 training, layers compiled, images/s", "1300", "1000 to 1280", "train-ffhq64-layers", "images_per_s"),
    ("the same, 256 images a call", "1300", "890", "train-ffhq64-larger", "images_per_s"),
    ("FFHQ64 sampling, 63 calls, images/s", "50", "50 or more", "sample-ffhq64-layers", "images_per_s_at_63_calls"),
    ("FFHQ64 training, 128 images a call, peak GiB", "", "50.1", "train-ffhq64", "peak_gib"),
)

Results = dict[str, dict[str, Any]]
Row = Sequence[Any]


def update(document: Path, results: Path) -> None:
    """Write the tables anew from the JSON files in `results`: cpu, cuda_suites, cuda of a lease, and roofline."""
    found: Results = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    document.write_text(render(document.read_text(), found))


def render(text: str, results: Results) -> str:
    """The document with all its tables made from `results`: {file: {machine, records}}.

    Of "cpu" and "cuda_suites" each suite has a machine of its own: {suites: {suite: machine}, records}.
    """

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](results)}\n<!-- end -->"

    return re.sub(r"(<!-- table ([a-z-]+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *(rows or [[NOT_MEASURED] * len(head)])]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def _records(results: Results, suite: str, device: str = "cpu") -> list[Record]:
    return [r for r in results.get(device, {}).get("records", []) if r["suite"] == suite]


def _x(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def _machine(results: Results) -> str:
    rows = [row for name, result in results.items() for row in _runs(name, result)]
    rows += [["cuda", *[NOT_MEASURED] * 10]] * ("cuda" not in results)
    head = [
        "", "device", "cores", "threads", "waiting", "load", "torch", "revision",
        "fp32 GFLOP/s", "bf16 GFLOP/s", "run, s",
    ]  # fmt: skip
    return _markdown(head, rows)


def _runs(name: str, result: dict[str, Any]) -> Iterator[Row]:
    """A row for the run of a file, or for each of several runs that its suites are of."""
    if result.get("machine"):
        yield [name, *_facts(result["machine"])]
    suites: dict[str, list[str]] = {}
    for suite, machine in result.get("suites", {}).items():
        suites.setdefault(json.dumps(machine), []).append(suite)
    for machine, of_it in suites.items():
        yield [f"{name}: {', '.join(of_it)}", *_facts(json.loads(machine))]


def _facts(machine: dict[str, Any]) -> Row:
    peaks = machine.get("matmul_gflops", {})
    # A lease times its cases one by one.
    seconds = machine["seconds"]
    total = rounded(sum(seconds.values())) if isinstance(seconds, dict) else seconds
    return [
        machine["device"], machine.get("cores"), machine["threads"], machine.get("wait_policy"),
        machine.get("load_average"), machine["torch"], (machine["git_revision"] or "")[:7], peaks.get("float32"),
        peaks.get("bfloat16"), total,
    ]  # fmt: skip


def _steps(suite: str) -> Callable[[Results], str]:
    """The default preset by variant and family, and how other settings compare with ours."""

    def table(results: Results) -> str:
        records = [r for r in _records(results, suite) if r["preset"] == "digits16"]
        measured = {name: head for name, head in OTHER_SETTINGS.items() if any(name in r for r in records)}
        rows = [
            [r["variant"], r["family"], r["plain_ms"], r["ours_ms"], _x(r["ratio"]), _x(r["ratio_of_least"]),
             *(_over(r, name) for name in measured)]
            for r in records
        ]  # fmt: skip
        head = ["model", "family", "plain, ms", "ours, ms", "ratio", "ratio of the least", *measured.values()]
        return _markdown(head, rows)

    return table


def _over(record: Record, name: str) -> str:
    return _x(record["plain_ms"] / record[name] if name in record else None)


def _paper(results: Results) -> str:
    """The paper's presets: on a GPU whole, on a CPU narrowed, as proof that the code path runs."""
    rows = []
    for job, (name, speed) in LEASED.items():
        for preset in PAPER:
            rates = [_rate(_leased(results, f"{name}-{preset}{way}", speed), speed) for way in WAYS.values()]
            gpu = _named(_records(results, job, "cuda_suites"), preset)
            cpu = _named(_records(results, job), f"{preset} (narrow)")
            rows.append([job, preset, *rates, _x(gpu["ratio"] if gpu else None), _x(cpu["ratio"] if cpu else None)])
    head = [f"GPU, {way}: images/s (MFU)" for way in WAYS]
    return _markdown(["", "preset", *head, "GPU: plain / ours", "CPU, narrow network: plain / ours"], rows)


def _leased(results: Results, case: str, field: str) -> Record | None:
    """The last record of a case that has the field: of sampling, that of the CUDA graph."""
    found = [r for r in _records(results, case, "cuda") if field in r]
    return found[-1] if found else None


def _rate(record: Record | None, speed: str) -> str:
    """Images per second, and the share of the measured speed of matrix products where that is known."""
    if record is None:
        return NOT_MEASURED
    return f"{record[speed]}" if record["mfu"] is None else f"{record[speed]} ({record['mfu']:.1%})"


def _predictions(results: Results) -> str:
    rows = []
    for what, goal, prediction, case, field in PREDICTIONS:
        record = _leased(results, case, field)
        rows.append([what, goal, prediction, record[field] if record else NOT_MEASURED])
    return _markdown(["", "goal", "predicted", "measured"], rows)


def _lease(results: Results) -> str:
    rows = [
        [r["case"] or r["suite"], _found(r) or NOT_MEASURED, r.get("run")]
        for r in results.get("cuda", {}).get("records", [])
    ]
    return _markdown(["case", "found", "run"], rows)


def _found(record: Record) -> str:
    elsewhere = ("suite", "case", "run", "skipped")
    return ", ".join(f"{name} {value}" for name, value in record.items() if name not in elsewhere and value is not None)


def _named(records: Sequence[Record], preset: str) -> Record | None:
    """The InvFusion model on the mixture."""
    chosen = (r for r in records if r["preset"] == preset and r["variant"] == "invfusion" and r["family"] == "mixture")
    return next(chosen, None)


def _roofline(results: Results) -> str:
    measured = {r["case"]: r["ms"] for r in _records(results, "parts-ffhq64", "cuda")}
    records = _records(results, "roofline", "roofline")
    cards = list(records[0]["ms"]) if records else []
    rows = [
        [r["preset"], r["part"], r["images"], r["kernels"], r["gigabytes"], r["teraflops"],
         measured.get(f"{r['preset']}, {r['images']} images: {r['part']}", NOT_MEASURED), *r["ms"].values()]
        for r in records
    ]  # fmt: skip
    head = ["preset", "part", "images", "kernels", "GB", "TFLOP", "H200 measured, ms", *(f"{c}, ms" for c in cards)]
    return _markdown(head, rows)


def _breakdown(results: Results) -> str:
    def shares(record: Record) -> Iterator[str]:
        draw, maps, network = (record[f"{name}_share"] for name in ("draw", "maps", "forward_backward"))
        return (f"{share:.1%}" for share in (draw, maps, network - maps, 1 - draw - network))

    rows: list[Row] = [
        [r["preset"], r["family"], r["precision"], r["step_ms"], *shares(r)]
        for device in ("cpu", "cuda_suites")
        for r in _records(results, "breakdown", device)
    ]
    if "cuda_suites" not in results:
        rows += [[preset, "all, on a GPU", "bf16", *[NOT_MEASURED] * 5] for preset in PAPER]
    parts = ["operators drawn and prepared", "H and H_pinv", "network besides", "update and the rest"]
    return _markdown(["preset", "family", "precision", "step, ms", *parts], rows)


def _operators(results: Results) -> str:
    rows = [
        [r["preset"], r["family"], r["map"], r["direction"], r["plain_ms"], r["ours_ms"], _x(r["ratio"])]
        for r in _records(results, "operators")
    ]
    return _markdown(["preset", "family", "map", "direction", "plain, ms", "ours, ms", "ratio"], rows)


def _creation(results: Results) -> str:
    rows = [
        [r["preset"], r["family"], r["operators"], r["draw_ms"], r["plain_ms"], r["ours_ms"], _x(r["ratio"])]
        for r in _records(results, "creation")
    ]
    head = ["preset", "family", "operators", "draw, ms", "plain inverse, ms", "our inverse, ms", "ratio"]
    return _markdown(head, rows)


def _attention(results: Results) -> str:
    rows = [
        [r["preset"], r["tokens"], r["kernel"], r["heads"], r["backend"], r["plain_ms"], r["ours_ms"], _x(r["ratio"])]
        for device in ("cpu", "cuda_suites")
        for r in _records(results, "attention", device)
    ]
    rows += [["all, on a GPU", "", "", "", name, *[NOT_MEASURED] * 3] for name in ("natten", "flex")] * (
        "cuda_suites" not in results
    )
    return _markdown(["preset", "tokens", "kernel", "heads", "backend", "plain, ms", "ours, ms", "ratio"], rows)


def _memory(results: Results) -> str:
    records = _records(results, "memory") + _records(results, "memory", "cuda_suites")
    rows = [
        [r["preset"], "computed again" if r["recomputes"] else "kept", r["parameters_mib"], r["kept_mib_per_image"],
         r["peak_mib"] or NOT_MEASURED]
        for r in records
    ]  # fmt: skip
    head = ["preset", "activations", "parameters, MiB", "kept for backward, MiB per image", "GPU peak, MiB"]
    return _markdown(head, rows)


def _capacity(results: Results) -> str:
    rows = [
        [r["preset"], r["fixed_mib"], r["kept_mib_per_image"], r["largest_batch"]]
        for r in _records(results, "capacity")
    ]
    head = ["preset", "whatever the batch, MiB", "per image, MiB", "largest batch in 80 GB, at most"]
    return _markdown(head, rows)


def _data(results: Results) -> str:
    steps = {r["preset"]: r for r in _records(results, "training") if _is_whole(r)}
    rows = [
        [r["preset"], r["staging_images_per_second"], r["batches_images_per_second"],
         _x(r["batches_images_per_second"] / steps[r["preset"]]["images_per_second"])
         if r["preset"] in steps else NOT_MEASURED]
        for r in _records(results, "data")
    ]  # fmt: skip
    head = ["images of", "staging (once), images/s", "batches, images/s", "batches over training's consumption"]
    return _markdown(head, rows)


def _is_whole(record: Record) -> bool:
    return bool(record["variant"] == "invfusion" and record["family"] == "mixture")


def _whole(results: Results) -> str:
    rows = [
        [r["preset"], r["what"], r["plain_ms"], r["ours_ms"], _x(r["ratio"]), r["images_per_second"],
         _x(r["ours_ms"] / r["drawn_ahead_ms"]) if "drawn_ahead_ms" in r else ""]
        for device in ("cpu", "cuda_suites") for r in _records(results, "whole", device)
    ]  # fmt: skip
    head = ["preset", "", "plain, ms", "ours, ms", "ratio", "images/s", "ours, drawn ahead by a thread: further"]
    return _markdown(head, rows)


def _threads(results: Results) -> str:
    rows = [
        [r["job"], r["case"], r["wait_policy"], r["images_per_second"], _x(r["ratio"])]
        for r in _records(results, "threads")
    ]
    return _markdown(["", "", "OMP_WAIT_POLICY", "images/s", "speed over the plain one at its best"], rows)


def _changes(results: Results) -> str:
    rows = [
        [r["change"], r["prediction"], r["before_ms"], r["after_ms"], _x(r["ratio"])]
        for r in _records(results, "changes")
    ]
    return _markdown(["", "prediction", "before, ms", "after, ms", "measured"], rows)


def _scale(axis: str, shown: Sequence[int]) -> Callable[[Results], str]:
    """Seconds and memory of each curve at some sizes, the exponents, and what takes most of the time at the end."""

    def table(results: Results) -> str:
        curves: dict[str, dict[int, Record]] = {}
        for r in _records(results, "scale", "scale"):
            if r["axis"] == axis:
                curves.setdefault(r["what"], {})[r["n"]] = r
        rows = [[what, *(_cell(found.get(n)) for n in shown), *_growth(found)] for what, found in curves.items()]
        head = ["", *(f"{n:,}" for n in shown), "last", "time grows by", "must", "memory grows by", "most of the time"]
        return _markdown(head, rows)

    return table


def _cell(record: Record | None) -> str:
    """Milliseconds and MiB of one run."""
    if record is None:
        return ""
    peak = record["peak_mib"]
    return f"{_short(1e3 * record['seconds'])} ms" + ("" if peak is None else f", {_short(peak)} MiB")


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _growth(found: dict[int, Record]) -> Row:
    last = found[max(found)]
    sizes = sorted(found)
    held = {n: found[n]["peak_mib"] for n in sizes if (found[n]["peak_mib"] or 0) >= LEAST_MIB}
    powers = (exponent(sizes, [found[n]["seconds"] for n in sizes]), exponent(list(held), list(held.values())))
    time, memory = ("" if power is None else f"{power:.1f}" for power in powers)
    return [f"{last['n']:,}", time, f"{last['must']:g}", memory, dominant(last)]


def _processes(results: Results) -> str:
    rows = [
        [r["what"], r["n"], r["cores"], r["images_per_second"], _x(r["ratio"]), f"{r['efficiency']:.0%}"]
        for r in _records(results, "scale", "scale")
        if r["axis"] == "processes"
    ]
    return _markdown(["", "processes", "cores", "images/s", "speed over one", "of what the cores could do"], rows)


def _tile_loop(results: Results) -> str:
    rows = [
        [r["case"], r["method"], "x".join(map(str, r["size"])), r["loop_seconds_per_megapixel"],
         r["ours_seconds_per_megapixel"], _x(r["ratio"]), r["loop_mib"], r["ours_mib"]]
        for r in _records(results, "tile_loop", "tile_loop")
    ]  # fmt: skip
    head = ["what happened", "method", "pixels", "loop, s/MP", "ours, s/MP", "ratio", "loop, MiB", "ours, MiB"]
    return _markdown(head, rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "machine": _machine,
    "training": _steps("training"),
    "sampling": _steps("sampling"),
    "predictions": _predictions,
    "paper": _paper,
    "lease": _lease,
    "roofline": _roofline,
    "breakdown": _breakdown,
    "operators": _operators,
    "creation": _creation,
    "attention": _attention,
    "changes": _changes,
    "memory": _memory,
    "capacity": _capacity,
    "data": _data,
    "whole": _whole,
    "threads": _threads,
    "tile-loop": _tile_loop,
    "scale-side": _scale("side", (16, 64, 256, 512, 1024)),
    "scale-images": _scale("images", (1, 4, 16, 64)),
    "scale-rank": _scale("rank", (8, 64, 256, 512)),
    "scale-rows": _scale("rows", (8, 64, 256, 1024)),
    "scale-samples": _scale("samples", (10_000, 100_000, 1_000_000, 10_000_000)),
    "scale-processes": _processes,
}


if __name__ == "__main__":
    update(PERFORMANCE, Path("benchmarks/results"))
