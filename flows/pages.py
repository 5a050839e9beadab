"""What a run's page in the Prefect UI shows: progress, speed, remaining time and pictures, while it runs."""

import base64
import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_UI_URL
from prefect.states import Cancelled, Completed, Running

from components import tracking
from components.paths import EVALUATION
from components.progress import FOLDER
from components.records import Record, read_records
from invfusion.metrics import METRICS

log = logging.getLogger(__name__)

REFRESH_S = 5.0
MAX_PICTURE_BYTES = 2_000_000


@contextlib.contextmanager
def shown(run_id: str | None, names: Sequence[str] = ()) -> Iterator[None]:
    """Within the block, what steps of these names (of any, without names) tell of their progress appears on the page.

    A server that does not answer costs nothing but the page.
    """
    if run_id is None:
        yield
        return
    page, ended = Page(UUID(run_id), names), threading.Event()
    watcher = threading.Thread(target=_watch, args=(page, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=REFRESH_S)


def _watch(page: "Page", ended: threading.Event) -> None:
    while not ended.wait(REFRESH_S):
        _refresh(page)
    _refresh(page)


def _refresh(page: "Page") -> None:
    with _unless_down():
        page.refresh()


class Page:
    """The artifacts of one run. Files older than the run belong to others and are not shown."""

    def __init__(self, run_id: UUID, names: Sequence[str] = ()) -> None:
        self._run, self._names = run_id, names
        self._seen: dict[Path, float] = {}
        self._artifacts: dict[str, UUID] = {}
        self._since = time.time()

    def refresh(self) -> None:
        """Post what has changed since the last time."""
        with get_client(sync_client=True) as client:
            for path in sorted(FOLDER.glob("*.json")):
                if self._is_new(path, path.stem):
                    self._show_progress(client, path.stem, json.loads(path.read_text()))
            for path in sorted(FOLDER.glob("*.png")):
                if self._is_new(path, path.stem) and path.stat().st_size <= MAX_PICTURE_BYTES:
                    # Prefect writes the address of an artifact that is an image below it, however long that is.
                    picture = f"![](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
                    self._put(client, f"{path.stem}-samples", "markdown", picture, f"newest samples of {path.stem}")
            if EVALUATION.exists() and self._is_new(EVALUATION, "evaluate"):
                rows = table(read_records(EVALUATION))
                self._put(client, "results", "table", json.dumps(rows), "the evaluation, with 95% intervals")

    def _show_progress(self, client: Any, name: str, content: dict[str, Any]) -> None:
        percent = 100 * content["done"] / max(content["total"], 1)
        self._put(client, f"{name}-progress", "progress", percent, f"progress of {name}")
        self._put(client, f"{name}-status", "markdown", status_text(name, content), f"speed and ETA of {name}")

    def _is_new(self, path: Path, name: str) -> bool:
        changed = path.stat().st_mtime
        is_other = bool(self._names) and name not in self._names
        if is_other or changed < self._since or self._seen.get(path) == changed:
            return False
        self._seen[path] = changed
        return True

    def _put(self, client: Any, key: str, kind: str, data: Any, description: str) -> None:
        key = key.lower().replace("_", "-").replace(".", "-")
        if key in self._artifacts:
            client.update_artifact(self._artifacts[key], ArtifactUpdate(data=data))
            return
        wanted = ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self._run)
        self._artifacts[key] = client.create_artifact(wanted).id


class Timeline:
    """The stages of a run, one after the other, as tasks on its page; and what else is worth a look.

    A server that does not answer, or no run at all, costs nothing but these.
    """

    def __init__(self, run_id: str | None) -> None:
        self._run, self._count = UUID(run_id) if run_id else None, 0
        self._task: UUID | None = None
        self._links = [f"commit `{tracking.git_revision()}`"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(Cancelled(message="the run ended meanwhile"))

    def begin(self, stage: str) -> None:
        """A stage runs, and the one before it is done."""
        self.end(Completed())
        self._count += 1
        if self._run is None:
            return
        with _unless_down(), get_client(sync_client=True) as client:
            task: Task[[], None] = Task(fn=lambda: None, name=stage)
            created = client.create_task_run(task, self._run, str(self._count), name=stage)
            client.set_task_run_state(created.id, Running(), force=True)
            self._task = created.id

    def end(self, state: State) -> None:
        """The stage has come to this end."""
        task, self._task = self._task, None
        if task is not None:
            with _unless_down(), get_client(sync_client=True) as client:
                client.set_task_run_state(task, state, force=True)

    def link(self, name: str, address: str) -> None:
        """Show where else this run is told of."""
        self._links.append(f"[{name}]({address})" if address.startswith("http") else f"{name}: `{address}`")
        if self._run is None:
            return
        with _unless_down(), get_client(sync_client=True) as client:
            text = "\n".join(f"* {link}" for link in self._links)
            wanted = ArtifactCreate(
                key="links", type="markdown", data=text, description="commit and MLflow runs", flow_run_id=self._run
            )
            client.create_artifact(wanted)


@contextlib.contextmanager
def _unless_down() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever Prefect raises, the work goes on
        log.debug("the page of this run could not be refreshed: %s", error)


def link_of(line: str) -> tuple[str, str] | None:
    """The name and address of an MLflow run, of which a stage tells in its log."""
    found = re.fullmatch(re.escape(tracking.RUN_LINE).replace("%s", "(.*)"), line.rstrip())
    return (found[1], found[2]) if found else None


def page_of(run_id: str) -> str:
    """The address of a run's page."""
    return f"{PREFECT_UI_URL.value() or ''}/runs/flow-run/{run_id}"


def status_text(name: str, content: dict[str, Any]) -> str:
    """One table of where a step stands."""
    unit = content["unit"]
    eta = content["eta_s"]
    rows = {
        "done": f"{content['done']:,} of {content['total']:,} {unit}",
        "speed": f"{content['per_second']:.1f} {unit}/s",
        "remaining": "unknown" if eta is None else f"{eta // 3600:d} h {eta // 60 % 60:02d} min {eta % 60:02d} s",
    }
    known = {"done", "total", "unit", "per_second", "eta_s", "at"}
    rows |= {key: f"{value:.4g}" for key, value in content.items() if key not in known}
    return f"## {name}\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def table(records: Iterable[Record]) -> list[dict[str, str]]:
    """One row for each method in each degradation."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for r in records:
        if r.metric in METRICS and METRICS[r.metric].main:
            row = rows.setdefault((r.degradation, r.method), {"degradation": r.degradation, "method": r.method})
            row[r.metric] = _shown(r)
    return list(rows.values())


def _shown(record: Record) -> str:
    """A number with its interval, where it has one."""
    show = METRICS[record.metric].show
    if record.value is None:
        return "unavailable"
    if record.low is None or record.high is None:
        return show(record.value)
    return f"{show(record.value)} [{show(record.low)}, {show(record.high)}]"
