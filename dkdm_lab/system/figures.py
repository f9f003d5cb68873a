"""Figures: one look for the whole book. Every function returns the figure it drew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

# One colour a method, the same in every chapter; chosen to be told apart by colour-blind readers.
COLOURS = {
    "teacher": "#444444",
    "data-based": "#0072B2",
    "data-limited": "#56B4E9",
    "data-free": "#E69F00",
    "iterative": "#CC79A7",
    "shuffled": "#009E73",
    "dynamic": "#D55E00",
}

STYLE = {
    "figure.dpi": 90,
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def use_style() -> None:
    """Set the book's look for every figure that follows."""
    plt.rcParams.update(STYLE)


def style():
    """The book's look for the figures that a block draws, and for no others."""
    return plt.rc_context(STYLE)


def image_grid(images: Tensor, columns: int = 10, cell: float = 0.55) -> Figure:
    """uint8 images ``[N, C, H, W]`` in rows of ``columns``."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * cell, rows * cell), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
    figure.subplots_adjust(0, 0, 1, 1, 0.06, 0.06)
    plt.close(figure)
    return figure


def sample_sheet(
    rows: Mapping[str, Tensor], columns: Sequence[str] | None = None, cell: float | None = None
) -> Figure:
    """One labelled row of images a name, ``{name: uint8 [N, C, H, W]}``, as many in each: what several models
    make of the same noise, column by column. A method's label has its colour.

    columns: a label for each column, as the class it was drawn for. cell: the side of an image in inches, by
    default 0.9, and 2 for images larger than 128 pixels. Small images are enlarged pixel by pixel.
    ValueError for rows that are not as many images, grey or in colour.
    """
    first = next(iter(rows.values()))
    for name, images in rows.items():
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape != first.shape:
            raise ValueError(
                f"row {name!r}: found {list(images.shape)}, expected [N, 1 or 3, H, W], the same in each row"
            )
    number, (height, width) = len(first), first.shape[2:]
    cell = cell or (0.9 if max(height, width) <= 128 else 2.0)
    label, top, gap = 0.3 + 0.09 * max(map(len, rows)), 0.3 if columns else 0.06, 0.06
    size = (label + number * cell + gap, top + len(rows) * (cell * height / width + gap))
    figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False)
    for axis, (name, images) in zip(axes.flat, rows.items(), strict=True):
        line = max(1, round(width * gap / cell))  # the white between two images, in their own pixels
        mosaic = np.full((height, number * (width + line) - line, images.shape[1]), 255, dtype=np.uint8)
        for column, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            mosaic[:, column * (width + line) :][:, :width] = image
        axis.imshow(mosaic.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", color=_colour(name) or "black")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.set(xticks=[], yticks=[])
    if columns:
        middles = [column * (width + line) + (width - 1) / 2 for column in range(number)]
        axes[0, 0].set_xticks(middles, columns)
        axes[0, 0].tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, pad=2)
    (w, h), between = size, len(rows) * gap / (size[1] - top)
    figure.subplots_adjust(label / w, gap / 2 / h, 1 - gap / w, 1 - top / h, hspace=between)
    plt.close(figure)
    return figure


def losses(iteration: Sequence[int], values: Mapping[str, Sequence[float]]) -> Figure:
    """A panel a loss over iterations, ``{label: values}``, for losses have units of their own; pale each
    value, and its running mean. A logarithmic axis where all of a loss are above 0."""
    figure, axes = plt.subplots(1, len(values), figsize=(4.6 * len(values), 3.4), squeeze=False)
    for axis, (name, y) in zip(axes.flat, values.items(), strict=True):
        axis.plot(iteration, y, color=COLOURS["dynamic"], alpha=0.3, linewidth=1)
        axis.plot(iteration, smoothed(y, max(1, min(9, len(y) // 10))), color=COLOURS["dynamic"])
        axis.set(xlabel="iteration", ylabel=name)
        if all(value > 0 for value in y):
            axis.set_yscale("log")
            _read_log(axis.yaxis)
    figure.tight_layout()
    plt.close(figure)
    return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
    level: tuple[str, float] | None = None,
) -> Figure:
    """Named lines ``{name: (x, y)}``; method names keep their colour. level: a dashed horizontal line.

    log_y: a logarithmic axis, unless some y is not above 0, as unbiased distances may be."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    for name, (x, y) in lines.items():
        axis.plot(x, y, label=name, color=_colour(name), marker="o" if len(x) <= 12 else None, markersize=4)
    if level is not None:
        axis.axhline(
            level[1], color=COLOURS.get(level[0], "black"), linestyle="--", label=level[0], linewidth=1.2
        )
    axis.set(xlabel=x_label, ylabel=y_label)
    if log_y and all(value > 0 for _, y in lines.values() for value in y):
        axis.set_yscale("log")
        _read_log(axis.yaxis)
    axis.legend()
    figure.tight_layout()
    plt.close(figure)
    return figure


def smoothed(values: Sequence[float], window: int = 9) -> np.ndarray:
    """Running mean over ``window`` values, shorter at both ends; for noisy losses."""
    values = np.asarray(values)
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def spreads(rows: Mapping[str, tuple[float, float]], x_label: str) -> Figure:
    """Mean and standard deviation a method, best at the top, on a logarithmic axis where all are above 0."""
    figure, axis = plt.subplots(figsize=(6.4, 0.42 * len(rows) + 1.0))
    ordered = sorted(rows.items(), key=lambda row: -row[1][0])
    for name, (mean, deviation) in ordered:
        axis.errorbar(mean, name, xerr=deviation, fmt="o", color=_colour(name), capsize=4, markersize=7)
    axis.set(xlabel=x_label)
    if all(mean > deviation for mean, deviation in rows.values()):
        axis.set_xscale("log")
        _read_log(axis.xaxis)
    axis.margins(y=0.12)
    figure.tight_layout()
    plt.close(figure)
    return figure


def _colour(name: str) -> str | None:
    """A method's colour, also with a word after it, as "data-limited 5%"."""
    return COLOURS.get(name.split(" ")[0])


def _read_log(axis) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5 and so on, or decades where there are many."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def shares(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """One horizontal bar a name, divided into named parts that add up to one."""
    figure, axis = plt.subplots(figsize=(6.8, 0.55 * len(bars) + 1.2))
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    greys = dict(zip(parts, plt.get_cmap("viridis")(np.linspace(0.15, 0.9, len(parts))), strict=True))
    for row, bar in enumerate(reversed(bars.values())):
        left = 0.0
        for part, share in bar.items():
            axis.barh(row, share, left=left, color=greys[part], label=part if row == 0 else None)
            left += share
    axis.set_yticks(range(len(bars)), list(reversed(bars)))
    axis.set(xlabel="share of a step", xlim=(0, 1))
    axis.grid(visible=False)
    axis.legend(ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    plt.close(figure)
    return figure


def scatter(groups: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Figure:
    """Named groups of points on logarithmic axes, with the dashed line where both are equal."""
    figure, axis = plt.subplots(figsize=(5.2, 4.4))
    for name, group in groups.items():
        axis.scatter(*zip(*group, strict=True), label=name)
    values = [v for group in groups.values() for point in group for v in point]
    if values:
        ends = (0.9 * min(values), 1.1 * max(values))
        axis.plot(ends, ends, color="black", linestyle="--", linewidth=1)
        axis.legend()
    axis.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    _read_log(axis.xaxis)
    _read_log(axis.yaxis)
    figure.tight_layout()
    plt.close(figure)
    return figure


def points(panels: Mapping[str, Tensor], limit: float = 1.6, reference: Tensor | None = None) -> Figure:
    """Sets of points in the plane side by side, ``{title: [N, 2]}``, each over a grey reference."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.3), squeeze=False)
    for axis, (title, x) in zip(axes.flat, panels.items(), strict=True):
        if reference is not None:
            axis.scatter(*reference.T, s=3, color="#bbbbbb", linewidths=0)
        axis.scatter(*x.T, s=4, color="#D55E00", linewidths=0)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    figure.tight_layout()
    plt.close(figure)
    return figure


def paradigms() -> Figure:
    """Figs. 1 and 2 redrawn: where a training batch comes from in each of the three ways."""
    ways = {
        "data-based training": {
            0: "data set",
            3: "add noise\nEq. 4",
            4: "batch\n$x^t, t, \\epsilon$",
            5: "new\nmodel",
        },
        "data-free training": {
            0: "teacher",
            1: "denoise\n$T$ steps",
            2: "synthetic\ndata set",
            3: "add noise\nEq. 4",
            4: "batch\n$x^t, t, \\epsilon$",
            5: "new\nmodel",
        },
        "DKDM": {
            0: "teacher",
            2: "pool of noisy\nsamples",
            3: "denoise\none step",
            4: "batch\n$\\hat x^t, t, \\epsilon_T, p_T$",
            5: "new\nmodel",
        },
    }
    colours = {
        "data set": "#cfe3f3",
        "synthetic\ndata set": "#fbe3b5",
        "teacher": "#dddddd",
        "new\nmodel": "#f6d3c2",
    }
    figure, axes = plt.subplots(3, 1, figsize=(8.2, 5.2))
    for axis, (title, boxes) in zip(axes, ways.items(), strict=True):
        axis.set(xlim=(-0.5, 5.5), ylim=(0, 1))
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axis.axis("off")
        drawn = {}
        for column, text in boxes.items():
            style = {
                "boxstyle": "round,pad=0.45",
                "facecolor": colours.get(text, "white"),
                "edgecolor": "#666666",
            }
            drawn[column] = axis.text(column, 0.55, text, ha="center", va="center", bbox=style, fontsize=9.5)
        columns = list(boxes)
        for start, end in pairwise(columns):
            if (title, start) != ("DKDM", 0):
                _arrow(axis, drawn[start], drawn[end])
    # In DKDM the teacher is not the start of a line but the one who denoises; and the line is a loop.
    _arrow(axes[2], drawn[0], drawn[3], bend=-0.3)
    _arrow(axes[2], drawn[3], drawn[2], bend=-0.55, colour="#D55E00")
    axes[2].text(2.5, 0.02, "back to its place", color="#D55E00", fontsize=9, ha="center")
    figure.tight_layout()
    plt.close(figure)
    return figure


def graph(runs) -> Figure:
    """A sweep's runs: a box for each method with how many of it there are, and arrows to those that stand on
    it."""
    counts = Counter(run.method for run in runs)
    students = sorted(counts.keys() - {"teacher", "synthetic"}, key=list(COLOURS).index)
    places = {"teacher": (0, 0.5), "synthetic": (1, 0.72)}
    places |= {m: (2, 1 - (k + 0.5) / len(students)) for k, m in enumerate(students)}
    figure, axis = plt.subplots(figsize=(8.2, 0.55 * len(students) + 0.4))
    axis.set(xlim=(-0.4, 2.4), ylim=(0, 1))
    axis.axis("off")
    drawn = {}
    for method, (x, y) in places.items():
        colour = COLOURS.get(method, COLOURS["data-free"])
        box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5}
        label = f"{method}: {counts[method]}"
        drawn[method] = axis.text(x, y, label, ha="center", va="center", bbox=box, fontsize=9.5)
    for below, above in sorted({(needed.method, run.method) for run in runs for needed in run.needs()}):
        _arrow(axis, drawn[below], drawn[above], colour="#999999")
    figure.tight_layout()
    plt.close(figure)
    return figure


def _arrow(axis, start, end, bend: float = 0.0, colour: str = "#444444") -> None:
    """From one box to another, edge to edge."""
    axis.annotate(
        "",
        end.get_position(),
        start.get_position(),
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "connectionstyle": f"arc3,rad={bend}",
            "patchA": start.get_bbox_patch(),
            "patchB": end.get_bbox_patch(),
            "shrinkA": 2,
            "shrinkB": 2,
        },
    )
