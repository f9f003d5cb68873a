"""The look that all explorations share: live widgets where a person can move them, a static twin elsewhere.

The twin is one piece of HTML that needs no kernel and no network: the same in JupyterLab and on the site.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
from IPython import get_ipython
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

_serial = itertools.count()


def live() -> bool:
    """Whether a person can move a widget here: a kernel that a notebook's front end has started.

    papermill, nbclient and nbval start kernels too, and nobody sits before those. So a front end must have
    left its mark: Jupyter's server names the notebook in JPY_SESSION_NAME, VS Code in a variable of the
    kernel, Colab its release. The variable DKDM_LIVE overrules all of them, 0 for the twin (as ``dkdm run``
    says it to its chapters) and 1 for widgets. ValueError for any other value.
    """
    asked = os.environ.get("DKDM_LIVE")
    if asked not in (None, "0", "1"):
        raise ValueError(f"DKDM_LIVE: found {asked!r}, expected 0 or 1")
    if asked is not None:
        return asked == "1"
    shell = get_ipython()
    if getattr(shell, "kernel", None) is None:
        return False
    marks = ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG")
    return any(map(os.environ.get, marks)) or "__vsc_ipynb_file__" in shell.user_ns


@dataclass(frozen=True)
class Control:
    """One thing to choose. options: all values it may have; a range becomes a slider, anything else a menu.
    value: the first one. shown: those that the twin has frames of, all by default. several: whether a value
    is a tuple of any of the options; the twin shows the first one."""

    label: str
    options: Sequence
    value: object
    shown: Sequence | None = None
    several: bool = False

    def __post_init__(self):
        for value in (self.value, *(self.shown or ())):
            self.check(value)

    def check(self, value) -> None:
        """ValueError for a value that it cannot have."""
        for one in value if self.several else [value]:
            if one not in self.options:
                raise ValueError(f"{self.label}: found {one!r}, expected one of {list(self.options)}")

    @property
    def frames(self) -> Sequence:
        return [self.value] if self.several else self.options if self.shown is None else self.shown

    def widget(self) -> ipywidgets.ValueWidget:
        style = {"description_width": "initial"}
        if self.several:
            return ipywidgets.SelectMultiple(
                options=list(self.options), value=self.value, description=self.label, style=style
            )
        if isinstance(self.options, range):
            low, high, step = self.options[0], self.options[-1], self.options.step
            return ipywidgets.IntSlider(
                self.value, low, high, step, description=self.label, style=style, continuous_update=False
            )
        return ipywidgets.Dropdown(
            options=[(str(o), o) for o in self.options], value=self.value, description=self.label, style=style
        )


class Exploration:
    """A thing to play with: :class:`Control` s, and a view that follows them.

    Its state is a plain dict, so it needs no front end: :meth:`set` changes it, :meth:`view` shows it as
    HTML. A cell that ends in one shows :attr:`widget` where :func:`live`, else :meth:`twin`. A subclass says
    what the view is, and may keep more than its controls.
    """

    title: str  # what it lets one explore, for its heading and for screen readers

    def __init__(self, controls: Mapping[str, Control]):
        self.controls = dict(controls)
        self.state = {name: control.value for name, control in self.controls.items()}
        self.widgets: dict[str, ipywidgets.ValueWidget] = {}  # those of the controls, once they are made
        self._widget: ipywidgets.Widget | None = None
        self._view: ipywidgets.HTML | None = None

    def set(self, **values) -> None:
        """Choose; ValueError for a value that is not an option."""
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(f"choice: found {name!r}, expected one of {', '.join(self.controls)}")
            self.controls[name].check(value)
        before, self.state = self.state, {**self.state, **values}
        if self.state != before:
            self.changed(set(values))
            self.refresh()

    def changed(self, names: set[str]) -> None:
        """Called after a choice and before the view; for what must begin anew."""

    def view(self) -> str:
        """The present state as HTML; :func:`picture` makes a figure one."""
        raise NotImplementedError

    def twin(self) -> HTML:
        """A frame for each combination of what the controls show, under a control each."""
        shown = {name: control.frames for name, control in self.controls.items()}
        fragments = []
        for values in itertools.product(*shown.values()):
            self.set(**dict(zip(shown, values, strict=True)))
            fragments.append(self.view())
        first = [control.value for control in self.controls.values()]
        self.set(**dict(zip(shown, first, strict=True)))
        choices = {self.controls[n].label: [str(v) for v in values] for n, values in shown.items()}
        starts = [
            list(values).index(start) if start in values else 0
            for values, start in zip(shown.values(), first, strict=True)
        ]
        return fragments_html(fragments, choices, starts)

    # -- live -----------------------------------------------------------------------------------------

    @property
    def widget(self) -> ipywidgets.Widget:
        """The controls over the view, made once and only where asked for."""
        if self._widget is None:
            self._view = ipywidgets.HTML()
            self._widget = ipywidgets.VBox(
                [
                    ipywidgets.HTML(f"<b>{html.escape(self.title)}</b>"),
                    ipywidgets.HBox(self.row(), layout=ipywidgets.Layout(flex_flow="row wrap")),
                    self._view,
                ]
            )
            self.refresh()
        return self._widget

    def row(self) -> list[ipywidgets.Widget]:
        """The widgets of the controls, joined to the state."""
        for name, control in self.controls.items():
            self.widgets[name] = control.widget()
            self.widgets[name].observe(lambda change, name=name: self.set(**{name: change["new"]}), "value")
        return list(self.widgets.values())

    def refresh(self) -> None:
        """Show the present state, if anybody looks."""
        if self._view is not None:
            self._view.value = self.view()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        if live():
            return self.widget._repr_mimebundle_(include=include, exclude=exclude)
        return {"text/html": self.twin().data, "text/plain": self.title}


def button(label: str, do: Callable[[], None]) -> ipywidgets.Button:
    """A button that calls ``do``."""
    made = ipywidgets.Button(description=label)
    made.on_click(lambda _: do())
    return made


def panels(widths: Sequence[float], height: float = 3.0) -> tuple[Figure, list]:
    """A figure of axes side by side, widths in inches. It is none of pyplot's, whose list of open figures
    is no place for another thread."""
    figure = Figure(figsize=(sum(widths), height), layout="tight")
    axes = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, alpha=0.25)
    return figure, axes


def picture(figure: Figure, text: str) -> str:
    """A figure as HTML, with a text that says what it shows; closes it. In 256 colours, a third of the bytes:
    a twin has dozens of frames, and a notebook keeps them all."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=90, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    colours = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(buffer, format="png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}" style="max-width:100%">'


def captioned(figure: Figure, text: str) -> str:
    """A figure over its caption, which is its text for those who cannot see it too."""
    return f'{picture(figure, text)}<p style="margin:.3em 0;font-size:.9em">{html.escape(text)}</p>'


def frames(figures: Sequence[Figure], labels: Sequence[str], name: str, start: int = 0) -> HTML:
    """Figures one at a time under a slider; closes them.

    labels: one caption a frame. name: what the slider chooses, for its label and for screen readers.
    start: the frame shown first, and the only one where scripts are off.
    """
    if len(figures) != len(labels) or not figures:
        raise ValueError(
            f"frames: found {len(figures)} figures and {len(labels)} labels, expected as many, one or more"
        )
    fragments = [picture(figure, label) for figure, label in zip(figures, labels, strict=True)]
    return fragments_html(fragments, {name: labels}, [start])


# One handler for whatever moves inside: the frame's number from the controls, the last one fastest.
_MOVE = (
    "const box=this;let k=0;"
    "box.querySelectorAll('.dkdm-control').forEach(c=>{"
    "k=k*(+c.dataset.n)+(+c.value);"
    "const o=box.querySelector('output[for='+c.id+']');"
    "if(o)o.value=JSON.parse(c.dataset.labels)[c.value]});"
    "box.querySelectorAll('.dkdm-frame').forEach((f,i)=>f.style.display=i==k?'':'none')"
)


def fragments_html(
    fragments: Sequence[str], choices: Mapping[str, Sequence[str]], starts: Sequence[int] | None = None
) -> HTML:
    """Fragments of HTML one at a time, chosen by a control each of ``choices``, ``{label: option names}``.

    fragments: one for each combination, the last choice the fastest. starts: the option of each that is
    shown first. A single choice, or one of more than five options, is a
    slider, others are menus.
    """
    starts = list(starts or [0] * len(choices))
    identity = f"frames-{next(_serial)}"
    first, controls = 0, []
    for number, ((label, names), start) in enumerate(zip(choices.items(), starts, strict=True)):
        first = first * len(names) + start
        if len(names) == 1 < len(choices):  # nothing to choose
            continue
        slider = len(names) > 5 or len(choices) == 1
        controls.append(_control(f"{identity}-{number}", label, names, start, slider))
    shown = "".join(
        f'<div class="dkdm-frame" style="{"" if number == first else "display:none"}">{fragment}</div>'
        for number, fragment in enumerate(fragments)
    )
    return HTML(
        f'<div class="dkdm-frames" id="{identity}" oninput="{html.escape(_MOVE)}">{shown}'
        f'<div style="display:flex;flex-wrap:wrap;gap:.8em;align-items:center;max-width:40em">'
        f"{''.join(controls)}</div></div>"
    )


def _control(identity: str, label: str, names: Sequence[str], start: int, slider: bool) -> str:
    labels = html.escape(json.dumps(list(names)))
    shared = f'class="dkdm-control" id="{identity}" data-n="{len(names)}" data-labels="{labels}"'
    named = f'<label for="{identity}">{html.escape(label)}</label>'
    if slider:
        return (
            f'{named}<input {shared} type="range" style="flex:1;min-width:8em" '
            f'min="0" max="{len(names) - 1}" value="{start}">'
            f'<output for="{identity}" style="min-width:6em">{html.escape(names[start])}</output>'
        )
    options = "".join(
        f'<option value="{number}"{" selected" if number == start else ""}>{html.escape(name)}</option>'
        for number, name in enumerate(names)
    )
    return f"{named}<select {shared}>{options}</select>"
