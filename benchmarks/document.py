"""Tables of docs/performance.md, made from the JSON of the last runs.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; everything else in the document is written by hand.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Record, rounded

PERFORMANCE = Path("docs/performance.md")
NOT_MEASURED = "not measured"
PAPER = ("ffhq64", "imagenet64", "ffhq256")
# Network calls per image: a training step is one, the paper's sampler takes 63.
CALLS = {"training": 1, "sampling": 63}
# How the network ran -> where a record has the time, and in which precision the peak was measured.
TIMES = {
    "float32": ("ours_ms", "float32"),
    "bf16": ("bf16_ms", "bfloat16"),
    "compiled bf16": ("compiled_bf16_ms", "bfloat16"),
}

Results = dict[str, dict[str, Any]]
Row = Sequence[Any]


def update(document: Path, results: Path) -> None:
    """Write the tables anew from <results>/cpu.json and <results>/cuda.json, as far as these exist."""
    found: Results = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    document.write_text(render(document.read_text(), found))


def render(text: str, results: Results) -> str:
    """The document with all its tables made from `results`: {"cpu" or "cuda": {machine, records}}."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](results)}\n<!-- end -->"

    return re.sub(r"(<!-- table ([a-z-]+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _records(results: Results, suite: str, device: str = "cpu") -> list[Record]:
    return [r for r in results.get(device, {}).get("records", []) if r["suite"] == suite]


def _x(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def _machine(results: Results) -> str:
    rows = [
        [name, m["device"], m["cores"], m["threads"], m["load_average"], m["torch"], m["git_revision"][:7],
         m["matmul_gflops"]["float32"], m["matmul_gflops"]["bfloat16"], m["seconds"]]
        for name, m in ((name, result["machine"]) for name, result in results.items())
    ]  # fmt: skip
    if "cuda" not in results:
        rows.append(["cuda", *[NOT_MEASURED] * 9])
    head = ["", "device", "cores", "threads", "load", "torch", "revision", "fp32 GFLOP/s", "bf16 GFLOP/s", "run, s"]
    return _markdown(head, rows)


def _steps(suite: str) -> Callable[[Results], str]:
    """The default preset by variant and family, and how other settings compare with ours."""

    def table(results: Results) -> str:
        records = [r for r in _records(results, suite) if r["preset"] == "digits16"]
        rows = [
            [r["variant"], r["family"], r["plain_ms"], r["ours_ms"], _x(r["ratio"]), _x(r["ratio_of_least"]),
             _over(r, "bf16_ms"), _over(r, "compiled_ms"), _over(r, "compiled_bf16_ms")]
            for r in records
        ]  # fmt: skip
        head = ["variant", "family", "plain, ms", "ours, ms", "ratio", "ratio of the least", "plain / bf16",
                "plain / compiled", "plain / compiled bf16"]  # fmt: skip
        return _markdown(head, rows)

    return table


def _over(record: Record, name: str) -> str:
    return _x(record["plain_ms"] / record[name] if name in record else None)


def _paper(results: Results) -> str:
    """The paper's presets: on a GPU whole, on a CPU narrowed, as proof that the code path runs."""
    rows = []
    for suite, calls in CALLS.items():
        for preset in PAPER:
            gpu = _named(_records(results, suite, "cuda"), preset)
            cpu = _named(_records(results, suite), f"{preset} (narrow)")
            peaks = results["cuda"]["machine"]["matmul_gflops"] if gpu else {}
            figures = [_rate(gpu, time, calls, peaks.get(dtype)) for time, dtype in TIMES.values()]
            rows.append([suite, preset, *figures, _x(gpu["ratio"] if gpu else None), _x(cpu["ratio"] if cpu else None)])
    head = [f"GPU, {name}: images/s (MFU)" for name in TIMES]
    return _markdown(["", "preset", *head, "GPU: plain / ours", "CPU, narrow network: plain / ours"], rows)


def _rate(record: Record | None, time: str, calls: int, peak: float | None) -> str:
    """Images per second where each takes so many calls, and the share of the peak (GFLOP/s) that their products use."""
    if record is None or peak is None or time not in record:
        return NOT_MEASURED
    per_call = 1e3 * record["images"] / record[time]
    return f"{rounded(per_call / calls)} ({per_call * record['gflop_per_image'] / peak:.1%})"


def _named(records: Sequence[Record], preset: str) -> Record | None:
    """The InvFusion model on the mixture."""
    chosen = (r for r in records if r["preset"] == preset and r["variant"] == "invfusion" and r["family"] == "mixture")
    return next(chosen, None)


def _breakdown(results: Results) -> str:
    def shares(record: Record) -> Iterator[str]:
        draw, maps, network = (record[f"{name}_share"] for name in ("draw", "maps", "forward_backward"))
        return (f"{share:.1%}" for share in (draw, maps, network - maps, 1 - draw - network))

    rows: list[Row] = [
        [r["preset"], r["family"], r["precision"], r["step_ms"], *shares(r)]
        for device in ("cpu", "cuda")
        for r in _records(results, "breakdown", device)
    ]
    if "cuda" not in results:
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
        for device in ("cpu", "cuda")
        for r in _records(results, "attention", device)
    ]
    rows += [["all, on a GPU", "", "", "", name, *[NOT_MEASURED] * 3] for name in ("natten", "flex")] * (
        "cuda" not in results
    )
    return _markdown(["preset", "tokens", "kernel", "heads", "backend", "plain, ms", "ours, ms", "ratio"], rows)


def _memory(results: Results) -> str:
    records = _records(results, "memory") + _records(results, "memory", "cuda")
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
        for device in ("cpu", "cuda") for r in _records(results, "whole", device)
    ]  # fmt: skip
    head = ["preset", "", "plain, ms", "ours, ms", "ratio", "images/s", "ours, drawn ahead by a thread: further"]
    return _markdown(head, rows)


def _threads(results: Results) -> str:
    rows = [
        [r["job"], r["case"], r["wait_policy"], r["images_per_second"], _x(r["ratio"])]
        for r in _records(results, "threads")
    ]
    return _markdown(["", "", "OMP_WAIT_POLICY", "images/s", "speed over the plain one"], rows)


def _changes(results: Results) -> str:
    rows = [
        [r["change"], r["prediction"], r["before_ms"], r["after_ms"], _x(r["ratio"])]
        for r in _records(results, "changes")
    ]
    return _markdown(["", "prediction", "before, ms", "after, ms", "measured"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "machine": _machine,
    "training": _steps("training"),
    "sampling": _steps("sampling"),
    "paper": _paper,
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
}
