"""The command line: ``dkdm run`` executes chapters or fills the ledger, ``dkdm train`` makes one run,
``dkdm study`` the parts of a study, and ``dkdm distill`` a student of any teacher."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import signal
import sys
import threading

from dkdm_lab.system import budget

EXIT_CODES = (
    "Exit codes: 0, all is finished; 75, --minutes are used up and the same command goes on (accelerate "
    "launch makes that 1, only the message says so); 130, stopped by a signal and saved; 1, an error, also "
    "--minutes in which nothing at all could be saved."
)


def _add_minutes(command: argparse.ArgumentParser, where: str = "") -> None:
    command.add_argument(
        "--minutes", type=minutes, metavar="M",
        help=f"{where}stop by itself after so many, fractions too, when the step under way is done and saved",
    )  # fmt: skip


def _add_run(command: argparse.ArgumentParser, **method) -> None:
    """The options that name a run, see :func:`_run`; method: how its own is asked for."""
    command.add_argument("--preset", default="digits")
    command.add_argument("--method", **method)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="settings",
        help="a setting of the preset",
    )  # fmt: skip


def _add_teacher(command: argparse.ArgumentParser) -> None:
    """The options that name a teacher and what it takes, see :func:`_teacher`."""
    command.add_argument(
        "teacher", help="a diffusers pipeline's folder, a Hub id, an ADM file (.pt) or CompVis' LDM (.ckpt)"
    )
    command.add_argument("--variant", help="of a folder's weights, as fp16 (default: the plain ones)")
    command.add_argument(
        "--teacher-dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="in which the teacher computes (default: float32)",
    )  # fmt: skip
    command.add_argument("--prompts", metavar="FILE", help="a text-to-image teacher's prompts, one a line")
    command.add_argument(
        "--null-class", type=int, metavar="N",
        help="the label that stands for none, where a class-conditional U-Net has one",
    )  # fmt: skip
    command.add_argument("--schedule", choices=("cosine", "linear"), default="cosine", help="of an ADM file")
    command.add_argument("--steps", type=int, default=1000, help="T, of an ADM file (default: 1000)")
    command.add_argument(
        "--size", type=int,
        help="of an ADM file's images (32), a .ckpt's latents (64), or the samples of a folder that has none",
    )  # fmt: skip
    command.add_argument("--head-channels", type=int, default=32, help="of a file's attention (default: 32)")
    command.add_argument(
        "--legacy-attention", action="store_true", help="an ADM file with q, k, v interleaved"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dkdm", description="DKDM Lab: run the book, or the runs behind it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="execute chapters, or with --ledger the runs behind their tables",
        description="Execute chapters with papermill. With --ledger: make the runs behind the book's tables "
        "that book/results/<preset>/ misses, at the preset's full size, the cheapest first, each after those "
        "that it stands on. Finished runs are read, not repeated.",
        epilog=EXIT_CODES,
    )
    run.add_argument("--preset", default="digits")
    run.add_argument("--chapters", type=list_of, help="names or numbers, comma-separated (default: all)")
    run.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="settings",
        help="a chapter parameter, or with --ledger a setting of the preset",
    )  # fmt: skip
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="chapters side by side (default: 1)")
    run.add_argument("--ledger", action="store_true", help="runs instead of chapters")
    run.add_argument(
        "--methods", type=list_of,
        help="with --ledger: these at the preset's own settings, comma-separated (default: all runs that the "
        "book's tables, figures and claims look up)",
    )  # fmt: skip
    _add_minutes(run, "with --ledger: ")
    run.add_argument("--seeds", type=list_of, default=["0", "1", "2"], help="with --ledger (default: 0,1,2)")
    run.add_argument(
        "--against-teacher", action="store_true",
        help="with --ledger: FID' too, against the teacher's own distribution",
    )  # fmt: skip
    train = commands.add_parser(
        "train",
        help="one run: a method at a preset, with a seed",
        description="Train and score one run of a preset; what it needs, as its teacher, is made first. "
        "Called again it goes on where it was stopped, and a finished run is read. On several processes: "
        "accelerate launch -m dkdm_lab train ...",
        epilog=EXIT_CODES,
    )
    _add_minutes(train)
    _add_run(train, required=True)
    train.add_argument("--ledger", action="store_true", help="enter the result into book/results/ too")
    train.add_argument(
        "--against-teacher", action="store_true",
        help="with --ledger: FID' too, against the teacher's own distribution",
    )  # fmt: skip
    measure = commands.add_parser("measure", help="measure speed into book/results/<preset>/measured/")
    measure.add_argument("--preset", default="digits")
    measure.add_argument(
        "--seeds", type=list_of, default=["0", "1", "2"], help="repetitions (default: 0,1,2)"
    )
    study = commands.add_parser(
        "study",
        help="the distillation of VAEs and classifiers, into the ledger",
        description="Make the parts of a study that are not there yet, with what they stand on, and write "
        "book/results/<study>/studies/.",
    )
    study.add_argument("study", nargs="?", default="digits")
    study.add_argument("--parts", type=list_of, help="comma-separated (default: all)")
    study.add_argument(
        "--seeds", type=list_of, default=["0", "1", "2"], help="comma-separated (default: 0,1,2)"
    )
    study.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="settings",
        help="a setting of the study",
    )  # fmt: skip
    study.add_argument(
        "--publish", action="store_true", help="keep the parts in book/models, where others find them made"
    )
    distil = commands.add_parser(
        "distill",
        help="distil a teacher to a student, without a data set",
        description="Train a student from a teacher alone and write it as a pipeline of the teacher's kind. "
        "With it come its card, its losses and a sheet of its samples beside the teacher's. Called again, "
        "it goes on where it was stopped.",
        epilog=EXIT_CODES,
    )
    _add_minutes(distil)
    _add_teacher(distil)
    distil.add_argument(
        "--student", required=True,
        help="a network's name, as cnn-14m; x0.5, the teacher's own at half its width; or a config.json",
    )  # fmt: skip
    distil.add_argument("--out", required=True, metavar="DIR")
    distil.add_argument("--iterations", type=int, default=argparse.SUPPRESS)
    distil.add_argument("--batch-size", type=int, default=argparse.SUPPRESS)
    distil.add_argument(
        "--rho", type=float, default=argparse.SUPPRESS,
        help="the pool's size in T batches (default: 0.04; the paper's: 0.4)",
    )  # fmt: skip
    distil.add_argument(
        "--stride", type=int, default=argparse.SUPPRESS, metavar="K",
        help="steps that a turn moves the pool's samples by (default: T / 10; the paper's: 1)",
    )  # fmt: skip
    distil.add_argument(
        "--variance", choices=("learned", "stretched", "small", "large", "analytic", "ddim"),
        default=argparse.SUPPRESS,
        help="of the pool's moves (default: the teacher's own where it learns one, else analytic in strides)",
    )  # fmt: skip
    distil.add_argument(
        "--storage", choices=("float32", "bfloat16", "float16", "host"), default=argparse.SUPPRESS,
        help="how the pool's samples rest: in a precision, or in float32 in the host's memory",
    )  # fmt: skip
    distil.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default=argparse.SUPPRESS)
    distil.add_argument(
        "--compile", nargs="?", const="default", metavar="MODE",
        help="compile both networks by torch.compile; reduce-overhead records CUDA graphs",
    )  # fmt: skip
    distil.add_argument(
        "--lr", type=float, default=argparse.SUPPRESS,
        help="default: 1e-4, and up to 1e-3 for fewer than 10,000 iterations",
    )  # fmt: skip
    distil.add_argument("--ema", type=float, default=argparse.SUPPRESS)
    distil.add_argument(
        "--guidance", type=float, default=argparse.SUPPRESS, help="of the teacher while the pool moves"
    )
    distil.add_argument("--seed", type=int, default=argparse.SUPPRESS)
    distil.add_argument(
        "--evaluate", type=int, default=0, metavar="N", help="compare N images with N of the teacher's (FID')"
    )
    distil.add_argument(
        "--samples", type=int, default=8, metavar="N",
        help="columns of the sheet of samples beside the teacher's, at most; 0 for none (default: 8)",
    )  # fmt: skip
    distil.add_argument(
        "--init", choices=("random", "teacher"), default=argparse.SUPPRESS,
        help="teacher: begin with its weights wherever the student has one of the same name and shape",
    )  # fmt: skip
    distil.add_argument("--checkpoint-every", type=int, default=1000, metavar="N", help="iterations (1000)")
    distil.add_argument("--force", action="store_true", help="whatever the teacher answers to the questions")
    inspect = commands.add_parser(
        "inspect",
        help="say what a teacher is, and whether it denoises",
        description="Say what a teacher was recognised as and what its distillation would take, and ask it a "
        "few questions whose answers are known.",
    )
    _add_teacher(inspect)
    inspect.add_argument("--student", help="as of dkdm distill")
    publish = commands.add_parser(
        "publish",
        help="write the model of a finished run as a folder for others",
        description="Write a finished run's model as diffusers' pipeline, as those in book/models are: "
        "weights in 16 bits, a card, and a manifest.",
    )
    _add_run(publish, default="teacher")
    publish.add_argument("--out", required=True, metavar="DIR")
    pack = commands.add_parser(
        "pack",
        help="write a preset's runs to files of at most 15 MB, to be carried elsewhere",
        description="Write all that a preset's runs need to go on in another data_cache: the finished ones "
        "and those under way, each with its newest checkpoint.",
    )
    pack.add_argument("--preset", default="digits")
    pack.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    pack.add_argument(
        "--methods", type=list_of, help="the runs of these alone, comma-separated (default: all)"
    )
    pack.add_argument(
        "--statistics", action="store_true",
        help="the real images' statistics too: many MB, but hours for Inception without a GPU",
    )  # fmt: skip
    unpack = commands.add_parser(
        "unpack",
        help="put the runs of a pack into data_cache",
        description="Verify a pack and put its runs into data_cache. A run here that is further on, or made "
        "with other settings, is never overwritten.",
    )
    unpack.add_argument("pack", metavar="DIR", help="a folder that dkdm pack wrote")
    commands.add_parser("readme", help="renew README's table and picture from the ledger")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with budget.budget(getattr(options, "minutes", None)) as spent:
        try:
            return _carry_out(options)
        except budget.OutOfTime as stopped:
            if spent.kept:
                print(f"dkdm: {stopped}", file=sys.stderr)
                return budget.CALL_AGAIN
            print(f"dkdm: {stopped}; this time nothing was saved: give it more minutes", file=sys.stderr)
            return 1


def _carry_out(options: argparse.Namespace) -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's request, as Ctrl-C
    try:
        if options.command == "run" and options.minutes is not None and not options.ledger:
            raise ValueError(
                f"--minutes: found {options.minutes:g} without --ledger, expected both or neither"
            )
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
        elif options.command == "distill":
            _distill(options)
        elif options.command == "inspect":
            _inspect(options)
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
        print(f"dkdm: {error}", file=sys.stderr)
        return 1
    except budget.OutOfTime:
        raise
    except KeyboardInterrupt as stopped:  # of a training, it says what was saved
        print(f"dkdm: {str(stopped) or 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace):
    """The run that --preset, --method, --seed and --set name."""
    from dkdm_lab.experiments import presets
    from dkdm_lab.experiments.runs import Run

    return Run(presets.get(options.preset, **dict(options.settings)), options.method, options.seed)


def _train(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import ledger
    from dkdm_lab.system import distributed

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
    from dkdm_lab.experiments import paper, presets, sweep
    from dkdm_lab.experiments.runs import Run

    preset, seeds = presets.get(options.preset, **dict(options.settings)), [int(s) for s in options.seeds]
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
    parts = [studies.Part(study, name, int(seed)) for seed in options.seeds for name in names]
    for number, part in enumerate(parts, 1):
        where = f"[{number}/{len(parts)}] {study.name}/seed{part.seed}/{part.label}"
        print(f"{where}: {part.status}", flush=True)
        if options.publish:
            print(f"    {part.publish()}", flush=True)
            continue
        studies.enter(part)
        print(f"    {part.result().get('metrics', 'made')}", flush=True)


def _measure(options: argparse.Namespace) -> None:
    from dkdm_lab.experiments import paper, presets, speed
    from dkdm_lab.system.files import write_json
    from dkdm_lab.system.paths import results_dir

    preset = presets.get(options.preset)
    if preset.name not in paper.CAST:
        raise ValueError(f"preset: found {preset.name!r}, expected one of {', '.join(paper.CAST)}")
    for seed in map(int, options.seeds):
        file = results_dir() / preset.name / "measured" / f"seed{seed}.json"
        write_json(file, speed.measure(preset, paper.CAST[preset.name]["sizes"], seed))
        print(file.relative_to(results_dir()), flush=True)


def _teacher(options: argparse.Namespace, legacy: bool | None = None):
    from dkdm_lab.diffusion import GaussianDiffusion
    from dkdm_lab.teachers.pipelines import Pipeline

    return Pipeline.from_pretrained(
        options.teacher,
        diffusion=getattr(GaussianDiffusion, options.schedule)(options.steps),
        size=options.size,
        head_channels=options.head_channels,
        new_attention_order=not (options.legacy_attention if legacy is None else legacy),
        variant=options.variant,
        dtype=options.teacher_dtype,
    )


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
    from dkdm_lab.teachers import check

    found = check.require(teacher.to(device()), conditions)
    if str(options.teacher).endswith((".pt", ".pth")):
        order = not options.legacy_attention
        problem = check.other_order(options.teacher, found, lambda new: _teacher(options, not new), order)
        if problem:
            raise ValueError(f"{problem} (--force distils it all the same)")


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
    from dkdm_lab.teachers import check, distill

    teacher = _teacher(options)
    conditions = _conditions(options, teacher)
    names = [field.name for field in dataclasses.fields(distill.Distillation)]
    given = {name: getattr(options, name) for name in names if name in options}  # the rest has its defaults
    settings = distill.Distillation(**given)
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
        report=functools.partial(print, flush=True),
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
    from dkdm_lab.system.paths import results_dir

    book = results_dir().parent
    ledger.write_readme(book.parent / "README.md")
    figures.use_style()
    (book / "images").mkdir(exist_ok=True)
    figures.paradigms().savefig(book / "images" / "paradigms.png", dpi=110)


def minutes(text: str) -> float:
    """A budget's minutes."""
    try:
        return budget.minutes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("minutes: ")) from None


def list_of(text: str) -> list[str]:
    """The words of a comma-separated list."""
    return text.split(",")


def settings_of(text: str) -> dict:
    """Settings from one text, as "iterations=1000,lr=0.001"."""
    return dict(map(setting, filter(None, text.split(","))))


def setting(text: str) -> tuple[str, object]:
    """One setting from NAME=VALUE; the value is a Python literal or else a plain word."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a plain word


if __name__ == "__main__":
    sys.exit(main())
