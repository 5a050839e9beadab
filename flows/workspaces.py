"""A copy of the project for each job, and one lock for what jobs and commands share.

A job's workspace is a git worktree below .dvc/tmp/jobs, with all files as they are when the job begins, those that are
not committed too. It shares DVC's cache, so that nothing is copied and nothing computed twice. What the job changes
there, parameters first of all, nobody else sees; at its end the workspace is gone, and its results, where they are to
be kept, are put into the working copy. Training states lie outside, so that a later job goes on from them.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.utils.serialize import dump_yaml, load_yaml

from components import profiles
from components.params import Params, load_params, read_values
from flows.repair import LOCKFILES, dvc_at_rest
from invfusion.errors import ConfigError, ServiceError
from invfusion.files import replacing, write_text
from invfusion.locks import holder, lock, locked, shared

log = logging.getLogger(__name__)

PARAMS = Path("params.yaml")
FOLDER = Path(".dvc/tmp/jobs")
# Whoever has this lock has params.yaml, dvc.lock and the results of the working copy to himself.
LOCK = Path("state/working-copy.lock")
STATE = Path("state")
VARIANTS = STATE / "variants"
# Without a copy of its own where the disk allows.
LINKS = ["reflink", "hardlink", "symlink", "copy"]
IDENTIFY = "identify"


@contextlib.contextmanager
def working_copy(purpose: str) -> Iterator[None]:
    """Alone with what this working copy's jobs and commands share, after whoever has it now."""
    held = lock(LOCK, f"{purpose} (process {os.getpid()})")
    if not _at_once(held):
        log.info("%s waits for this working copy, which %s uses", purpose, holder(LOCK))
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _at_once(held: Any) -> bool:
    with contextlib.suppress(TimeoutError):
        held.acquire(blocking=False)
        return True
    return False


@dataclass(frozen=True)
class Wanted:
    """What a job asks for: a profile in place of the parameters ("" for none), and values put into those.

    keeps: its values and results come into the working copy; where it has no values, its results do in any case.
    discards_edits: even where values that somebody has changed in params.yaml are lost.
    """

    profile: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    keeps: bool = False
    discards_edits: bool = False


@dataclass(frozen=True)
class Workspace:
    """Where a job works. root: the working copy; differs: whether its parameters do; before: what the lock files said
    at the beginning."""

    folder: Path
    root: Path
    params: Params
    differs: bool
    before: Mapping[Path, Mapping[str, Any]]

    def push(self) -> None:
        """Hand all results to the DVC remote, and what they were made from, by which others find them without a lock.

        Raises:
            ServiceError: the remote does not take them.
        """
        command = [sys.executable, "-m", "dvc", "push", "--run-cache", "--quiet"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceError(f"the results could not be pushed to the DVC remote: {done.stderr.strip()[-2000:]}")

    def keep(self, wanted: Wanted) -> None:
        """Put the job's parameters and results into the working copy."""
        if self.differs and not wanted.keeps:
            return
        with contextlib.chdir(self.root), working_copy("keeping a job's results"):
            if self.differs:
                _refuse_to_lose(wanted)
                _write_params((self.folder / PARAMS).read_text())
            for path, before in self.before.items():
                made = {name: made for name, made in _stages(self.folder / path).items() if made != before.get(name)}
                _merge(path, made)
                _bring(path, [name for name in made if name != IDENTIFY])
            subprocess.run([sys.executable, "-m", "flows.identify"], check=True)


@contextlib.contextmanager
def workspace(name: str, wanted: Wanted) -> Iterator[Workspace]:
    """A workspace for the length of the block; the current folder is its root.

    Raises:
        ConfigError: the values are not valid, edits would be lost, or the project is no git repository with a commit.
    """
    root = Path.cwd()
    text, params = _parameters(wanted)
    differs = _facts(params) != _facts(load_params(PARAMS))
    _remove_left()
    folder = FOLDER / name
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder.with_suffix(".lock")))
        stack.callback(_remove, root / folder)
        _copy_project(folder)
        write_text(folder / PARAMS, text)
        _share_cache(folder)
        _link(folder, params)
        (folder / STATE).symlink_to(stack.enter_context(_state(root, params, differs)))
        stack.enter_context(contextlib.chdir(folder))
        yield Workspace(root / folder, root, params, differs, {path: _stages(path) for path in LOCKFILES})


def _parameters(wanted: Wanted) -> tuple[str, Params]:
    """The job's parameters as a file and as what it says."""
    if wanted.keeps:
        _refuse_to_lose(wanted)
    text = profiles.profile_text(wanted.profile) if wanted.profile else PARAMS.read_text()
    values = profiles.round_trip().load(text)
    if profiles.overlay(values, wanted.changes):
        text = profiles.written(values)
    STATE.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        draft = STATE / f".params-{os.getpid()}.yaml"
        stack.callback(draft.unlink, missing_ok=True)
        draft.write_text(text)
        try:
            return text, load_params(draft)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(draft), str(PARAMS))) from None


def _refuse_to_lose(wanted: Wanted) -> None:
    if wanted.profile and not wanted.discards_edits:
        profiles.refuse_to_lose(read_values(PARAMS), wanted.profile)


def _write_params(text: str) -> None:
    with replacing(PARAMS) as partial:
        partial.write_text(text)


def _facts(params: Params) -> str:
    return params.model_dump_json(by_alias=True, exclude={"runtime"})


# Making it.


def _copy_project(folder: Path) -> None:
    """The files as git knows them, and as they are now."""
    with dvc_at_rest():
        try:
            _git("-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", "--quiet", str(folder), "HEAD")
            edited = _names("diff", "--name-only", "--no-renames", "HEAD") + _names(
                "ls-files", "-o", "--exclude-standard"
            )
        except subprocess.CalledProcessError as error:
            raise ConfigError(
                f"a job works in a copy made by git: make the project a git repository with a commit ({error.stderr})"
            ) from None
        for name in edited:
            source, target = Path(name), folder / name
            target.unlink(missing_ok=True)
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def _share_cache(folder: Path) -> None:
    """Cache and remotes are those of the working copy."""
    ours = Config(str(Path(".dvc").absolute()))
    cache = {**ours["cache"], "dir": ours["cache"].get("dir") or str(Path(".dvc/cache").absolute())}
    with Config(str((folder / ".dvc").absolute())).edit("local") as own:
        own["cache"] = {"dir": str(cache["dir"]), "type": cache.get("type") or LINKS}
        own["remote"] = {name: dict(remote) for name, remote in ours["remote"].items()}
        own["core"] = {key: value for key, value in ours["core"].items() if key in ("remote", "no_scm")}


def _link(folder: Path, params: Params) -> None:
    """What a person has put here beside git and DVC: data that DVC does not know, and the weights of metrics."""
    for path in (params.data.shards, params.evaluate.weights_dir):
        if not path.is_absolute() and path.exists() and not _is_dvcs(path):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / path).exists():
                (folder / path).symlink_to(path.absolute())


def _is_dvcs(path: Path) -> bool:
    return any(parent.with_name(f"{parent.name}.dvc").exists() for parent in (path, *path.parents) if parent.name)


@contextlib.contextmanager
def _state(root: Path, params: Params, differs: bool) -> Iterator[Path]:
    """Where the job's training goes on from: the working copy's own place, or one for these parameters, which is gone
    once a job with them has succeeded."""
    if not differs:
        yield root / STATE
        return
    place = root / VARIANTS / sha256(_facts(params).encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    used = place.with_suffix(".lock")
    with shared(used):
        yield place
    with locked(used, wait=False) as is_alone:
        if is_alone:
            shutil.rmtree(place, ignore_errors=True)


# The end of it.


def _remove(folder: Path) -> None:
    """A workspace, from the working copy's root."""
    with contextlib.chdir(folder.parents[3]):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(subprocess.CalledProcessError):
            _git("worktree", "prune")


def _remove_left() -> None:
    """Workspaces of jobs that were killed."""
    for path in FOLDER.glob("*.lock"):
        with locked(path, wait=False) as is_left:
            if is_left:
                _remove(path.with_suffix("").absolute())
                path.unlink(missing_ok=True)


def _merge(path: Path, made: Mapping[str, Any]) -> None:
    """Write down what stages were made from."""
    if made:
        with dvc_at_rest(), replacing(path) as partial:
            dump_yaml(str(partial), {"schema": "2.0", "stages": {**_stages(path), **made}})


def _stages(path: Path) -> dict[str, Any]:
    return dict(load_yaml(str(path)).get("stages") or {}) if path.exists() else {}


def _bring(path: Path, stages: list[str]) -> None:
    """Have DVC put the outputs of stages into place."""
    if stages:
        graph = path.with_suffix(".yaml")
        targets = [name if graph.parent == Path() else f"{graph}:{name}" for name in stages]
        command = [sys.executable, "-m", "dvc", "checkout", "--force", "--quiet", *targets]
        subprocess.run(command, check=True)


def _names(*command: str) -> list[str]:
    return [name for name in _git(*command, "-z").split("\0") if name]


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout
