"""What the command line takes: the options of every command, and the help that they give."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Annotated, get_args, get_type_hints

# Nothing here loads torch: help, and most refusals, come at once.
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.preset import Preset
from dkdm_lab.system import budget
from dkdm_lab.system.options import Command, folder, listed, option, setting, table
from dkdm_lab.system.settings import Compile, Count, CountOrNone, Levels, Seed, Tracker, kinds
from dkdm_lab.teachers.distillation import Distillation

EXIT_CODES = (
    "Exit codes: 0, all is finished; 75, --minutes are used up and the same command goes on (accelerate "
    "launch makes that 1, only the message says so); 130, stopped by a signal and saved; 1, an error, also "
    "--minutes in which nothing at all could be saved; 2, an option that cannot be read."
)
SEEDS = [0, 1, 2]
NAMES = listed(str)


def _of_preset() -> str:
    values = table(Preset, presets.get("digits"), ("name", "live"))
    return f"Settings of a preset, with the values of digits:\n{values}"


def _of_study() -> str:
    from dkdm_lab.experiments import studies

    return f"Settings of a study, with the values of digits:\n{table(studies.Study, studies.get('digits'))}"


def _add_settings(command: Command, what: str, more: Callable[[], str]) -> None:
    command.more = more
    command.add_argument(
        "--set", action="append", default=[], type=option(setting), metavar="NAME=VALUE", dest="settings",
        help=what,
    )  # fmt: skip


def _add_minutes(command: Command, where: str = "") -> None:
    command.add_argument(
        "--minutes", type=minutes, metavar="M",
        help=f"{where}stop by itself after so many, fractions too, when the step under way is done and saved",
    )  # fmt: skip


def _add_seeds(command: Command, meaning: str) -> None:
    command.add_argument("--seeds", type=listed(Seed), default=SEEDS, help=f"{meaning} (default: 0,1,2)")


def _add_ledger(command: Command, meaning: str) -> None:
    command.add_argument("--ledger", action="store_true", help=meaning)
    command.add_argument(
        "--against-teacher", action="store_true",
        help="with --ledger: FID' too, against the teacher's own distribution",
    )  # fmt: skip


def _add_run(command: Command, **method) -> None:
    """The options that name a run, see :func:`_run`; method: how its own is asked for."""
    command.add_argument("--preset", default="digits")
    command.add_argument("--method", **method)
    command.add("--seed", Seed, default=0)
    _add_settings(command, "a setting of the preset, see below", _of_preset)


def _add_teacher(command: Command) -> None:
    """The options that name a teacher and what it takes, see :func:`_teacher`."""
    command.add_argument("teacher", help=kinds(Distillation)["teacher"].meaning)
    command.add_argument("--variant", help="of a folder's weights, as fp16 (default: the plain ones)")
    command.add_argument(
        "--teacher-dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="in which the teacher computes (default: float32)",
    )  # fmt: skip
    command.add_argument("--device", help="as cpu or cuda:1 (default: a GPU if there is one)")
    command.add_argument("--prompts", metavar="FILE", help="a text-to-image teacher's prompts, one per line")
    no_label = "the label that stands for none, where a class-conditional U-Net has one"
    command.add("--null-class", Annotated[CountOrNone, no_label])
    command.add_argument("--schedule", choices=("cosine", "linear"), default="cosine", help="of an ADM file")
    command.add("--steps", Annotated[Levels, "T, of an ADM file"], default=1000)
    size = "of an ADM file's images (32), a .ckpt's latents (64), or the samples of a folder that has none"
    command.add("--size", Annotated[Count, size])
    command.add("--head-channels", Annotated[Count, "of a file's attention"], default=32)
    command.add_argument(
        "--legacy-attention", action="store_true", help="an ADM file with q, k, v interleaved"
    )


def parser() -> argparse.ArgumentParser:
    """The parser of ``dkdm``, with a command for each of its words."""
    found = argparse.ArgumentParser(prog="dkdm", description="DKDM Lab: run the book, or the runs behind it.")
    commands = found.add_subparsers(dest="command", required=True, parser_class=Command)
    run = commands.add_parser(
        "run",
        help="execute chapters, or with --ledger the runs behind their tables",
        description="Execute chapters with papermill. With --ledger: make the runs behind the book's tables "
        "that book/results/<preset>/ misses, at the preset's full size, the cheapest first, each after those "
        "that it stands on. Finished runs are read, not repeated.",
        epilog=EXIT_CODES,
    )
    run.add_argument("--preset", default="digits")
    run.add_argument("--chapters", type=NAMES, help="names or numbers, comma-separated (default: all)")
    _add_settings(run, "a chapter parameter, or a setting of the preset, see below", _of_preset)
    run.add("--jobs", Annotated[Count, "chapters side by side"], default=1, metavar="N")
    _add_ledger(run, "runs instead of chapters")
    run.add_argument(
        "--methods", type=NAMES,
        help="with --ledger: these at the preset's own settings, comma-separated (default: all runs that the "
        "book's tables, figures and claims look up)",
    )  # fmt: skip
    _add_minutes(run, "with --ledger: ")
    _add_seeds(run, "with --ledger")
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
    _add_ledger(train, "enter the result into book/results/ too")
    measure = commands.add_parser("measure", help="measure speed into book/results/<preset>/measured/")
    measure.add_argument("--preset", default="digits")
    _add_seeds(measure, "repetitions")
    study = commands.add_parser(
        "study",
        help="the distillation of VAEs and classifiers, into the ledger",
        description="Make the parts of a study that are not there yet, with what they stand on, and write "
        "book/results/<study>/studies/.",
    )
    study.add_argument("study", nargs="?", default="digits")
    study.add_argument("--parts", type=NAMES, help="comma-separated (default: all)")
    _add_seeds(study, "comma-separated")
    _add_settings(study, "a setting of the study, see below", _of_study)
    study.add_argument(
        "--publish", action="store_true", help="keep the parts in book/models, where others find them made"
    )
    _add_distill(commands)
    inspect = commands.add_parser(
        "inspect",
        help="say what a teacher is, and whether it denoises",
        description="Say what a teacher was recognised as and what its distillation would take, and ask it a "
        "few questions whose answers are known. What they cannot show: a wrong --head-channels, unless "
        "another does better by a tenth near pure noise, and a teacher of few steps whose files look like "
        "any other's.",
    )
    _add_teacher(inspect)
    inspect.add_argument("--student", help=kinds(Distillation)["student"].meaning)
    publish = commands.add_parser(
        "publish",
        help="write the model of a finished run as a folder for others",
        description="Write a finished run's model as diffusers' pipeline, as those in book/models are: "
        "weights in 16 bits, a card, and a manifest.",
    )
    _add_run(publish, default="teacher")
    publish.add_argument("--out", type=option(folder), required=True, metavar="DIR")
    pack = commands.add_parser(
        "pack",
        help="write a preset's runs to files of at most 15 MB, to be carried elsewhere",
        description="Write all that a preset's runs need to go on in another data_cache: the finished ones "
        "and those under way, each with its newest checkpoint.",
    )
    pack.add_argument("--preset", default="digits")
    pack.add_argument("--out", type=option(folder), required=True, metavar="DIR", help="a new folder")
    pack.add_argument("--methods", type=NAMES, help="the runs of these alone, comma-separated (default: all)")
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
    return found


def _add_distill(commands) -> None:
    """The command whose options are the fields of :class:`Distillation`."""
    distil = commands.add_parser(
        "distill",
        help="distil a teacher to a student, without a data set",
        description="Train a student from a teacher alone and write it as a pipeline of the teacher's kind. "
        "With it come its card, its losses and a sheet of its samples beside the teacher's. Called again, "
        "it goes on where it was stopped.",
        epilog=EXIT_CODES,
    )
    _add_teacher(distil)
    distil.add_argument("--student", required=True, help=kinds(Distillation)["student"].meaning)
    distil.add_argument("--out", type=option(folder), required=True, metavar="DIR")
    _add_minutes(distil)
    hints = get_type_hints(Distillation, include_extras=True)
    for field in dataclasses.fields(Distillation):
        if field.default is not dataclasses.MISSING:
            distil.add(f"--{field.name.replace('_', '-')}", hints[field.name], default=field.default)
    distil.add_argument(
        "--compile", nargs="?", const="default", choices=get_args(Compile), metavar="MODE",
        help="compile both networks by torch.compile; reduce-overhead records CUDA graphs",
    )  # fmt: skip
    twice = "compute the student's activations twice, for less memory (gradient checkpointing)"
    distil.add_argument("--checkpointing", action="store_true", help=twice)
    distil.add("--log-with", Annotated[Tracker, "tell one of accelerate's trackers the losses too"])
    distil.add_argument(
        "--push-to-hub",
        metavar="NAME",
        help="a repository on the Hub that gets the student once all is saved",
    )
    distil.add(
        "--evaluate", Annotated[CountOrNone, "compare so many images with the teacher's (FID')"], default=0
    )
    columns = "columns of the sheet of samples beside the teacher's, at most; 0 for none"
    distil.add("--samples", Annotated[CountOrNone, columns], default=8)
    distil.add("--checkpoint-every", Annotated[Count, "iterations between two checkpoints"], default=1000)
    distil.add_argument("--force", action="store_true", help="whatever the teacher answers to the questions")


def minutes(text: str) -> float:
    """A budget's minutes."""
    try:
        return budget.minutes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("minutes: ")) from None
