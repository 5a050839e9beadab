"""What a result was made with: the commit, and the versions of packages."""

import importlib.metadata
import subprocess
import sys

PACKAGES = ("torch", "numpy", "einops", "pydantic", "safetensors", "mlflow")
# The pipeline itself rewrites these while it runs; they do not make the code another one.
_NOT_CODE = ("--", ".", ":!dvc.lock", ":!reports")


def git_revision() -> str:
    """The commit of the working tree, with `-dirty` behind it where tracked files differ; "unknown" outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no", *_NOT_CODE) else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
