"""Files for people: figures and text that appear whole or not at all, and a check of where they go before long work."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from tl_rome.annotations import conform
from tl_rome.errors import StorageError
from tl_rome.figures import png
from tl_rome.patching.averaging.average import AverageTrace
from tl_rome.patching.plots.average import plot_averages
from tl_rome.patching.plots.trace import panels, panels_size, plot_traces
from tl_rome.patching.result import TraceResult
from tl_rome.storage.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tl_rome.grid import Grid


def check_folder(path: Path) -> Path:
    """Return a folder that could be written to; it need not exist, and nothing is left there.

    Raises:
        InputError: If no file could have that name.
        StorageError: If it is a file, lies in one, or must not be written to.
    """
    conform("path", path, Path)
    existing = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    try:
        with TemporaryFile(dir=existing):  # permissions are not enough: a file system can refuse even the superuser
            return path
    except OSError:
        what = f"cannot write to {path}: {existing} is not a folder that can be written to; name another"
        raise StorageError(what) from None


def check_file(path: Path) -> Path:
    """Return the path of a file that could be written; an existing one would be replaced.

    Raises:
        InputError: If no file could have that name.
        StorageError: If it is a folder, or its folder cannot be written to.
    """
    if conform("path", path, Path).is_dir():
        raise StorageError(f"cannot write {path}: it is a folder; name a file")
    check_folder(path.parent)
    return path


def save_figure(traces: Sequence[TraceResult], path: Path, *, shared_scale: bool = False) -> Path:
    """Draw traces of one prompt side by side into a PNG file.

    Raises:
        StorageError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=panels_size(traces), dpi=150, layout="constrained")
    plot_traces(traces, panels(figure, len(traces), sharey=True), shared_scale=shared_scale)
    return write_whole(path, png(figure))


def save_averages(averages: Sequence[AverageTrace], path: Path) -> Path:
    """Draw average effects side by side into a PNG file.

    Raises:
        StorageError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    width = 1.4 + len(averages) * (2.2 + 0.05 * len(averages[0].effects))
    figure = Figure(figsize=(width, 2.8), dpi=150, layout="constrained")
    plot_averages(averages, panels(figure, len(averages), sharey=True))
    return write_whole(path, png(figure))


def save_experiment(folder: Path, name: str, data: Any, grids: "Sequence[Grid]", figure: "Figure") -> list[Path]:
    """Write an experiment's figures as JSON, its tables as Markdown and its picture as PNG.

    Raises:
        StorageError: If a file cannot be written.
    """
    texts = {"json": json.dumps(data, indent=1, allow_nan=False), "md": "\n".join(grid.markdown for grid in grids)}
    files = {**{suffix: text.encode() for suffix, text in texts.items()}, "png": png(figure)}
    return [write_whole(folder / f"{name}.{suffix}", content) for suffix, content in files.items()]


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, or has something in it.

    Raises:
        StorageError: If it is so.
    """
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"cannot write to {folder}: it is not empty; name a new folder")
