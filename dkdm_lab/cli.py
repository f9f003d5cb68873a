"""The command line: ``dkdm run`` executes chapters or fills the ledger, ``dkdm train`` makes one run,
``dkdm study`` the parts of a study, and ``dkdm distill`` a student of any teacher."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys

# Nothing here loads torch: help, and most refusals, come at once.
from dkdm_lab.experiments import presets
from dkdm_lab.parser import parser
from dkdm_lab.system import budget
from dkdm_lab.system.options import writable
from dkdm_lab.system.paths import cache_dir, models_dir, results_dir
from dkdm_lab.system.settings import kinds
from dkdm_lab.teachers.distillation import Distillation


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with budget.interruptible(), budget.budget(getattr(options, "minutes", None)) as spent:
        try:
            return _carry_out(options)
        except budget.OutOfTime as stopped:
            if spent.kept:
                _say(stopped)
                return budget.CALL_AGAIN
            _say(f"{stopped}; this time nothing was saved: give it more minutes")
            return 1
        except KeyboardInterrupt as stopped:  # of a training, it says where that goes on
            _say(str(stopped) or "stopped")
            return 130


def _carry_out(options: argparse.Namespace) -> int:
    try:
        if options.command == "run" and not options.ledger:
            for name, found in (("minutes", options.minutes), ("methods", options.methods)):
                if found is not None:
                    text = f"{found:g}" if name == "minutes" else ",".join(found)
                    raise ValueError(f"--{name}: found {text} without --ledger, expected both or neither")
        if options.command == "readme":
            _renew_readme()
        elif options.command == "pack":
            _pack(options)
        elif options.command == "unpack":
            from dkdm_lab.experiments import packing

            print(*packing.unpack(options.pack), sep="\n")
        elif options.command == "study":
            _study(options)
        elif options.command == "measure":
            _measure(options)
        elif options.command in ("distill", "inspect"):
            from dkdm_lab.system import provenance

            with provenance.on(options.device):
                (_distill if options.command == "distill" else _inspect)(options)
        elif options.command == "train":
            _train(options)
        elif options.command == "publish":
            from dkdm_lab.experiments.shipped_models import publish

            print(publish(_run(options), options.out))
        elif options.ledger:
            _fill_ledger(options)
        else:
            from dkdm_lab.notebook.book import run_chapters

            run_chapters(options.preset, options.chapters, dict(options.settings), jobs=options.jobs)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        _say(error)
        return 1
    return 0


def _say(what: object) -> None:
    with contextlib.suppress(OSError):  # a terminal that is closed, which is why it stops
        print(f"dkdm: {what}", file=sys.stderr)


def _run(options: argparse.Namespace):
    """The run that --preset, --method, --seed and --set name."""
    from dkdm_lab.experiments.runs import Run

    writable(cache_dir(), "data_cache")
    return Run(presets.get(options.preset).replace(**dict(options.settings)), options.method, options.seed)


def _train(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import ledger
    from dkdm_lab.system import distributed

    if options.ledger:
        writable(results_dir(), "the ledger")
    run = _run(options)
    main = distributed.rank() == 0
    if main:
        print(f"{run.preset.name}/{run.name}: {run.status}", flush=True)
    result = run.result(wait=False)
    if main:
        with distributed.by_itself():
            if options.ledger:
                ledger.enter(run, options.against_teacher)
        print(f"{run.folder}: {result['metrics']}", flush=True)


def _fill_ledger(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import paper, sweep
    from dkdm_lab.experiments.runs import Run

    preset, seeds = presets.get(options.preset).replace(**dict(options.settings)), options.seeds
    writable(cache_dir(), "data_cache")
    writable(results_dir(), "the ledger")
    if options.methods:
        runs = [(Run(preset, method, seed).shared(), False) for seed in seeds for method in options.methods]
    else:
        runs = list(paper.sweep(preset, seeds).values())
    for line in sweep.fill((run, primed or options.against_teacher) for run, primed in runs):
        print(line, flush=True)


def _study(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import studies

    study = studies.get(options.study, **dict(options.settings))
    names = options.parts or list(studies.PARTS)
    parts = [studies.Part(study, name, seed) for seed in options.seeds for name in names]
    writable(cache_dir(), "data_cache")
    writable(models_dir() if options.publish else results_dir(), "the ledger")
    for number, part in enumerate(parts, 1):
        where = f"[{number}/{len(parts)}] {study.name}/seed{part.seed}/{part.label}"
        print(f"{where}: {part.status}", flush=True)
        if options.publish:
            print(f"    {part.publish()}", flush=True)
            continue
        studies.enter(part)
        print(f"    {part.result().get('metrics', 'made')}", flush=True)


def _measure(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import paper, speed
    from dkdm_lab.system.files import write_json

    preset = presets.get(options.preset)
    if preset.name not in paper.CAST:
        raise ValueError(f"preset: found {preset.name!r}, expected one of {', '.join(paper.CAST)}")
    writable(results_dir(), "the ledger")
    for seed in options.seeds:
        file = results_dir() / preset.name / "measured" / f"seed{seed}.json"
        write_json(file, speed.measure(preset, paper.CAST[preset.name]["sizes"], seed))
        print(file.relative_to(results_dir()), flush=True)


def _teacher(options: argparse.Namespace, **others):
    """The teacher that the options name, or with others in their place."""
    from dkdm_lab.diffusion import GaussianDiffusion
    from dkdm_lab.teachers.pipelines import Pipeline

    asked = {
        "diffusion": getattr(GaussianDiffusion, options.schedule)(options.steps),
        "size": options.size,
        "head_channels": options.head_channels,
        "new_attention_order": not options.legacy_attention,
        "variant": options.variant,
        "dtype": options.teacher_dtype,
    }
    return Pipeline.from_pretrained(options.teacher, **asked | others)


def _conditions(options: argparse.Namespace, teacher):
    from dkdm_lab.system.provenance import device
    from dkdm_lab.teachers.text import read_prompts

    needs = teacher.denoiser.condition
    if (needs == "text") != (options.prompts is not None):
        raise ValueError(
            f"--prompts: found {options.prompts}, but the teacher takes {needs or 'no condition'}"
        )
    if options.null_class is not None and needs != "class":
        raise ValueError(f"--null-class: found {options.null_class}, but the teacher takes no labels")
    if needs == "text":
        return teacher.prompts(read_prompts(options.prompts), device=device())
    return teacher.classes(options.null_class) if needs == "class" else None


def _asked(options: argparse.Namespace, teacher, conditions) -> None:
    """Refuse a teacher whose answers make no sense."""
    from dkdm_lab.system.provenance import device
    from dkdm_lab.teachers import check, distill

    teacher.to(device())
    teacher.denoiser.at_once = distill.default_batch_size(teacher)
    if options.teacher.endswith((".pt", ".pth", ".ckpt")):
        order = None if options.teacher.endswith(".ckpt") else not options.legacy_attention
        read = functools.partial(_teacher, options)
        problem = check.other_options(
            options.teacher, teacher, conditions, read, options.head_channels, order
        )
        if problem:
            raise ValueError(f"{problem} (--force distils it all the same)")
    check.require(teacher, conditions, options.teacher)


def _inspect(options: argparse.Namespace) -> None:
    from dkdm_lab.teachers import check, distill

    teacher = _teacher(options)
    conditions = _conditions(options, teacher)
    student = None if options.student is None else teacher.student(options.student)
    size = distill.default_batch_size(teacher)
    print(*check.describe(teacher, student, conditions, size), sep="\n", flush=True)
    _asked(options, teacher, conditions)
    print("answers: as a trained teacher's")


def _distill(options: argparse.Namespace) -> None:
    settings = Distillation(**{name: getattr(options, name) for name in kinds(Distillation)})
    from dkdm_lab.metrics.scores import require
    from dkdm_lab.system import distributed
    from dkdm_lab.system.progress import say
    from dkdm_lab.teachers import check, distill

    if options.evaluate and distributed.rank() == 0:
        require("inception", options.evaluate)
    teacher = _teacher(options)
    conditions = _conditions(options, teacher)
    if not distill.finished(options.out):
        print(*check.describe(teacher, conditions=conditions)[:-1], sep="\n", flush=True)
        if not options.force:
            _asked(options, teacher, conditions)
    distill.distill(
        teacher,
        settings,
        options.out,
        conditions,
        options.evaluate,
        options.checkpoint_every,
        compile=options.compile,
        samples=options.samples,
        report=say,
        checkpointing=options.checkpointing,
        log_with=options.log_with,
        push_to_hub=options.push_to_hub,
    )
    print(options.out)


def _pack(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import packing

    manifest = packing.pack(options.preset, options.out, options.statistics, options.methods)
    print(*packing.contents(manifest), sep="\n")
    size = sum(part["bytes"] for part in manifest["parts"]) / 1e6
    print(f"{options.out}: {len(manifest['parts'])} parts, {size:,.1f} MB; to be read by dkdm unpack")


def _renew_readme() -> None:
    from dkdm_lab.experiments import ledger
    from dkdm_lab.system import figures

    book = results_dir().parent
    ledger.write_readme(book.parent / "README.md")
    figures.use_style()
    (book / "images").mkdir(exist_ok=True)
    figures.paradigms().savefig(book / "images" / "paradigms.png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
