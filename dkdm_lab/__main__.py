"""The command line: ``dkdm run`` executes chapters, or fills the ledger."""

from __future__ import annotations

import argparse
import ast
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="dkdm", description="DKDM Lab: run the book, or the runs behind it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="execute chapters, or with --ledger the runs behind their tables",
        description="Execute chapters with papermill. With --ledger: train and score every method at the "
        "preset's full size and write book/results/<preset>/. Finished runs are read, not repeated.",
    )
    run.add_argument("--preset", default="digits")
    run.add_argument("--chapters", type=_list, help="names or numbers, comma-separated (default: all)")
    run.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", dest="settings",
        help="a chapter parameter, or with --ledger a setting of the preset",
    )  # fmt: skip
    run.add_argument("--ledger", action="store_true", help="runs instead of chapters")
    run.add_argument("--methods", type=_list, help="with --ledger: comma-separated (default: all)")
    run.add_argument("--seeds", type=_list, default=["0", "1", "2"], help="with --ledger (default: 0,1,2)")
    run.add_argument(
        "--against-teacher", action="store_true",
        help="with --ledger: FID' too, against the teacher's own distribution",
    )  # fmt: skip
    measure = commands.add_parser("measure", help="measure speed into book/results/<preset>/measured/")
    measure.add_argument("--preset", default="digits")
    measure.add_argument("--seeds", type=_list, default=["0", "1", "2"], help="repetitions (default: 0,1,2)")
    commands.add_parser("readme", help="renew README's table and picture from the ledger")
    options = parser.parse_args(arguments)
    try:
        if options.command == "readme":
            _renew_readme()
        elif options.command == "measure":
            _measure(options)
        elif options.ledger:
            _fill_ledger(options)
        else:
            from dkdm_lab.batch import run_chapters

            run_chapters(options.preset, options.chapters, dict(options.settings))
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"dkdm: {error}", file=sys.stderr)
        return 1
    return 0


def _fill_ledger(options: argparse.Namespace) -> None:
    from dkdm_lab import ledger, presets
    from dkdm_lab.runs import METHODS, Run

    preset = presets.get(options.preset, **dict(options.settings))
    # Every name is checked before the first hour is spent.
    runs = [Run(preset, method, int(seed)) for seed in options.seeds for method in options.methods or METHODS]
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run.preset.name}/{run.name}: {run.status}", flush=True)
        file = ledger.enter(run, options.against_teacher)
        print(f"    {run.result()['metrics']} -> {file.name}", flush=True)


def _measure(options: argparse.Namespace) -> None:
    from dkdm_lab import ledger, paper, presets, timing
    from dkdm_lab.runs import write_json

    preset = presets.get(options.preset)
    if preset.name not in paper.CAST:
        raise ValueError(f"preset: found {preset.name!r}, expected one of {', '.join(paper.CAST)}")
    for seed in map(int, options.seeds):
        file = ledger.folder() / preset.name / "measured" / f"seed{seed}.json"
        write_json(file, timing.measure(preset, paper.CAST[preset.name]["sizes"], seed))
        print(file.relative_to(ledger.folder()), flush=True)


def _renew_readme() -> None:
    from dkdm_lab import ledger, plots

    book = ledger.folder().parent
    ledger.write_readme(book.parent / "README.md")
    plots.use_style()
    (book / "images").mkdir(exist_ok=True)
    plots.paradigms().savefig(book / "images" / "paradigms.png", dpi=110)


def _list(text: str) -> list[str]:
    return text.split(",")


def _setting(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a plain word


if __name__ == "__main__":
    sys.exit(main())
