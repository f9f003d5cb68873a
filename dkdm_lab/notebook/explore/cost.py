"""What each method costs, from a few numbers: arithmetic that is alive on the site too, in plain JavaScript.

The counting is :func:`dkdm_lab.experiments.runs.cost`'s: a training step is three evaluations of the student,
an evaluation of the teacher is one, and what comes before the first step counts too.
"""

from __future__ import annotations

import html
import itertools

from IPython.display import HTML

from dkdm_lab.experiments.presets import Preset
from dkdm_lab.experiments.runs import operations

METHODS = ("data-based", "data-free", "iterative", "shuffled", "dynamic")
# What may be typed in, with its label.
INPUTS = {
    "teacher": "teacher, MFLOPs per evaluation",
    "student": "student, MFLOPs per evaluation",
    "batch": "batch size",
    "T": "T",
    "rho": "rho",
    "warmup": "warm-up, teacher evaluations per sample",
    "iterations": "iterations",
    "images": "synthetic images",
    "steps": "steps per synthetic image",
}
NEVER = "Dynamic distillation and data-free training do not break even here."
_serial = itertools.count()


def inputs(preset: Preset, warmup: float = 1.0) -> dict[str, float]:
    """The calculator's numbers for a preset. warmup: teacher evaluations per sample of a pool, 1 for the
    harvest; the paper's full walk takes about T / 2."""
    return {
        "teacher": operations(preset.teacher) / 1e6,
        "student": operations(preset.student) / 1e6,
        "batch": preset.batch_size,
        "T": preset.T,
        "rho": preset.rho,
        "warmup": warmup,
        "iterations": preset.iterations,
        "images": preset.synthetic_images,
        "steps": preset.synthetic_steps,
    }


def costs(given: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Each method's operations before the first step, and per step, from numbers as :func:`inputs` has."""
    g, million = given, 1e6
    step = 3 * g["batch"] * g["student"] * million
    turn = g["batch"] * g["teacher"] * million
    sample = g["warmup"] * g["teacher"] * million
    return {
        "data-based": (0.0, step),
        "data-free": (g["images"] * g["steps"] * g["teacher"] * million, step),
        "iterative": (0.0, step + turn),
        "shuffled": (g["batch"] * sample, step + turn),
        "dynamic": (round(g["rho"] * g["T"]) * g["batch"] * sample, step + turn),
    }


def break_even(given: dict[str, float]) -> float | None:
    """The iteration at which dynamic distillation has cost as much as data-free training, whose synthetic
    images come first; None where a teacher costs nothing, or dynamic is behind from the start."""
    of = costs(given)
    (free_before, free), (before, each) = of["data-free"], of["dynamic"]
    return (free_before - before) / (each - free) if each > free and free_before >= before else None


def cost_calculator(preset: Preset, warmup: float = 1.0) -> HTML:
    """A table of what each method costs at a preset, that follows what is typed in; without scripts it shows
    the preset's own numbers. The same in JupyterLab and on the site."""
    given, identity = inputs(preset, warmup), f"cost-{next(_serial)}"
    fields = "".join(
        f'<label style="display:flex;justify-content:space-between;gap:1em">{html.escape(label)}'
        f'<input type="number" min="0" step="any" name="{name}" value="{given[name]:.6g}" style="width:8em">'
        "</label>"
        for name, label in INPUTS.items()
    )
    rows = "".join(f'<tr data-method="{method}">{_cells(method, given)}</tr>' for method in METHODS)
    head = "<tr><th>method</th><th>before, GFLOPs</th><th>a step, GFLOPs</th><th>in all, GFLOPs</th></tr>"
    return HTML(
        f'<div class="dkdm-costs" id="{identity}" oninput="{html.escape(HANDLER)}">'
        f'<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(19em,1fr));gap:.3em 2em">'
        f'{fields}</div><div style="overflow-x:auto"><table>{head}{rows}</table></div>'
        f"<output>{_sentence(given)}</output></div>"
    )


def _number(value: float) -> str:
    """Four significant digits, as JavaScript's toPrecision(4) writes them."""
    return "0" if value == 0 else f"{float(f'{value:.3e}'):.6g}"


def _cells(method: str, given: dict[str, float]) -> str:
    before, step = (value / 1e9 for value in costs(given)[method])
    values = map(_number, (before, step, before + step * given["iterations"]))
    return f"<td>{method}</td>" + "".join(f"<td>{value}</td>" for value in values)


def _sentence(given: dict[str, float]) -> str:
    at = break_even(given)
    if at is None:
        return NEVER
    return f"Up to iteration {round(at)} dynamic distillation has cost less than data-free training."


# `costs` and `break_even` once more; a test compares both with Python's. JavaScript's Math.round takes a half
# up, Python's to the even number, so `even` is Python's.
FORMULAS = """
const even=v=>{const r=Math.round(v);return Math.abs(v%1)===0.5&&r%2?r-1:r};
const costs=g=>{const m=1e6,step=3*g.batch*g.student*m,turn=g.batch*g.teacher*m,one=g.warmup*g.teacher*m;
return {'data-based':[0,step],'data-free':[g.images*g.steps*g.teacher*m,step],'iterative':[0,step+turn],
'shuffled':[g.batch*one,step+turn],'dynamic':[even(g.rho*g.T)*g.batch*one,step+turn]}};
const breakEven=g=>{const c=costs(g),[fb,f]=c['data-free'],[b,e]=c['dynamic'];
return e>f&&fb>=b?(fb-b)/(e-f):null};
""".strip()
HANDLER = (
    FORMULAS
    + """
const g={};this.querySelectorAll('input').forEach(i=>g[i.name]=+i.value);
const show=v=>v===0?'0':String(+v.toPrecision(4)),c=costs(g);
this.querySelectorAll('tr[data-method]').forEach(r=>{const [b,s]=c[r.dataset.method].map(v=>v/1e9);
[b,s,b+s*g.iterations].forEach((v,i)=>r.cells[i+1].textContent=show(v))});
const at=breakEven(g);
this.querySelector('output').textContent=at===null?'NEVER':
'Up to iteration '+even(at)+' dynamic distillation has cost less than data-free training.'
""".replace("NEVER", NEVER)
)
