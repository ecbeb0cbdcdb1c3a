"""The loss curve of a training run as a picture."""

from __future__ import annotations

import csv
import os

from mdssd.system.files import atomic_write


def plot_losses(csv_path: str | os.PathLike[str], png_path: str | os.PathLike[str]) -> None:
    """Draw the losses of a run's CSV over its steps, with a logarithmic axis, into a PNG.

    The picture is written whole or not at all. A CSV without rows gives an empty picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with open(csv_path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, label in (("total", "total"), ("conf", "classes"), ("loc", "boxes")):
        axes.plot(steps, [float(row[name]) for row in rows], label=label, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if any(float(row["total"]) > 0 for row in rows):
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_write(png_path, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
