"""Frames with a slider, in one piece of HTML that needs no kernel: the same in JupyterLab and on the site."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

from dkdm_lab.data.images import to_uint8
from dkdm_lab.pools import Pool
from dkdm_lab.system import figures

_serial = itertools.count()


def watch(pool: Pool, iterations: int, every: int) -> HTML:
    """Let a pool run alone and show it every ``every`` iterations: points or images, and their t.

    The pool never asks the student anything, so what it does alone is what it does in training.
    """
    shown, labels = [], []
    pool.fill()
    for number in range(iterations + 1):
        if number % every == 0:
            x, t, T = pool.x.cpu(), pool.t.cpu(), pool.diffusion.T
            points = len(pool.shape) == 1
            shown.append(figures.pool_points(x, t, T) if points else figures.pool_images(to_uint8(x), t, T))
            labels.append(f"iteration {number}")
        next(pool)
    return frames(shown, labels, "time")


def frames(figures: Sequence[Figure], labels: Sequence[str], name: str, start: int = 0) -> HTML:
    """Figures one at a time under a slider; closes them.

    labels: one caption a frame. name: what the slider chooses, for its label and for screen readers.
    start: the frame shown first, and the only one where scripts are off.
    """
    if len(figures) != len(labels) or not figures:
        raise ValueError(
            f"frames: found {len(figures)} figures and {len(labels)} labels, expected as many, one or more"
        )
    pictures = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", facecolor="white")
        plt.close(figure)
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    identity = f"frames-{next(_serial)}"
    images = "".join(
        f'<img src="data:image/png;base64,{picture}" alt="{label}" '
        f'style="max-width:100%;{"" if number == start else "display:none"}">'
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    )
    return HTML(
        f'<div class="dkdm-frames" id="{identity}">{images}'
        f'<div style="display:flex;gap:.8em;align-items:center;max-width:40em">'
        f'<label for="{identity}-slider">{name}</label>'
        f'<input id="{identity}-slider" type="range" style="flex:1" '
        f'min="0" max="{len(figures) - 1}" value="{start}" '
        "oninput=\"const box=this.closest('.dkdm-frames');"
        "box.querySelectorAll('img').forEach((image,i)=>image.style.display=i==this.value?'':'none');"
        "box.querySelector('output').value=box.querySelectorAll('img')[this.value].alt\">"
        f'<output for="{identity}-slider" style="min-width:9em">{labels[start]}</output></div></div>'
    )
