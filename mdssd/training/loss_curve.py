"""The losses of a training run as a picture."""

from __future__ import annotations

import csv
import os

from mdssd.drawing.figures import save_png


def plot_losses(csv_path: str | os.PathLike[str], png_path: str | os.PathLike[str]) -> None:
    """Plot the losses of a run over its iterations, on a logarithmic axis.

    Args:
        csv_path: the loss.csv of a run; see `LossLog`. Without rows, the plot is empty.
        png_path: the PNG to write, 800 x 450 pixels. It is replaced at once or not at all.

    Raises:
        OSError: a file cannot be read or written.

    Example:
        >>> import tempfile
        >>> from mdssd.training.loss_curve import plot_losses
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     csv_path, png_path = Path(folder, "loss.csv"), Path(folder, "loss.png")
        ...     _ = csv_path.write_text("step,loc,conf,total\\n1,1,2,3\\n2,1,1,2\\n")
        ...     plot_losses(csv_path, png_path)
        ...     png_path.read_bytes()[1:4]
        b'PNG'
    """
    from matplotlib.figure import Figure

    with open(csv_path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, label in (("total", "total"), ("conf", "classes"), ("loc", "boxes")):
        losses = [float(row[name]) for row in rows]
        # A single row is a point: a line needs two.
        axes.plot(steps, losses, "o" if len(rows) == 1 else "-", label=label, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if any(float(row["total"]) > 0 for row in rows):
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_png(figure, png_path)
