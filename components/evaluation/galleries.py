"""The few restorations that reports show, as files that are easily read."""

from pathlib import Path

from safetensors.torch import save_file

from components.evaluation.judging import Case
from components.evaluation.measurement_sets import MeasurementSet
from components.evaluation.restoring import OF_COMPONENTS
from components.paths import file_name
from invfusion.codec import decode


def show_measured(folder: Path, measured: MeasurementSet, n_shown: int) -> None:
    """Write the first true images of a set, and their measurements as images."""
    folder = folder / measured.degradation
    folder.mkdir(parents=True, exist_ok=True)
    if measured.has_truth:
        save_file(
            {"images": measured.images.read(range(min(n_shown, len(measured.images))))}, folder / "truth.safetensors"
        )
        save_file({"images": measured.as_images(n_shown)}, folder / "measured.safetensors")


def show(folder: Path, case: Case, n_shown: int) -> None:
    """Write the first restorations of one method, with further draws and principal components where there are any."""
    restored = case.restored
    names = ["images", "diverged", *sorted(OF_COMPONENTS & restored.names)]
    shown = {name: restored.gather(name, n_shown) for name in names}
    if case.method.extra_draws:
        draws = restored.gather_draws("images", n_shown)
        shown |= {"draws": draws[:, 1:].contiguous(), "std": decode(draws).std(dim=1)}
    save_file(shown, folder / case.cell.degradation / f"{file_name(case.cell.method)}.safetensors")
