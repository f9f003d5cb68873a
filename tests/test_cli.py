"""The command line against invocations made from the settings' own types and ranges: what lies inside is
accepted, what lies outside is refused in one sentence, before anything is trained or written.

All in this process: an interpreter for each would take seconds. Where work would begin, `Began` ends it.
"""

import math
import random
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from dkdm_lab import cli
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments import part_making, presets, run_making, runs, speed, studies, sweep
from dkdm_lab.experiments.preset import Preset
from dkdm_lab.experiments.runs import Run
from dkdm_lab.experiments.studies import Part, Study
from dkdm_lab.metrics.scores import FEWEST
from dkdm_lab.moves import VARIANCES
from dkdm_lab.notebook import book
from dkdm_lab.pools import STORAGES, WARMUPS
from dkdm_lab.system.settings import Scored, Storage, Variance, kind, kinds
from dkdm_lab.teachers import distill
from dkdm_lab.teachers.distillation import Distillation

OTHER = {True, False, None, "abc", "nan", "inf", "-inf", "1e400", "'5'", "[]", "{}", "(1, 2)", "two", ""}


class Began(Exception):
    """The command accepted all that it was given: this is where it would have begun to work."""


def begin(*arguments, **options):
    raise Began


@pytest.fixture
def invoke(monkeypatch, tmp_path, capsys):
    """A function that runs the command line: the refusal it printed, or None where it began. Nothing that
    trains, reads a teacher or runs a chapter is left to it, and nothing may be on the disk afterwards."""

    def never(*arguments, **options):
        raise AssertionError("a training began")

    for module in (run_making, distill, part_making):
        monkeypatch.setattr(module, "train", never)
    for name in ("train_vae", "train_classifier", "synthesise"):
        monkeypatch.setattr(part_making, name, never)
    monkeypatch.setattr(runs, "train_autoencoder", never)
    for owner, name in ((Run, "result"), (Part, "result"), (sweep, "fill"), (speed, "measure")):
        monkeypatch.setattr(owner, name, begin)
    monkeypatch.setattr(distill, "distill", begin)
    monkeypatch.setattr("dkdm_lab.teachers.check.describe", lambda *_, **__: ["what it is", "what it takes"])
    monkeypatch.setattr(cli, "_asked", lambda *_: None)
    monkeypatch.setattr("dkdm_lab.experiments.shipped_models.publish", begin)
    monkeypatch.setattr("dkdm_lab.experiments.packing.pack", begin)
    monkeypatch.setattr("dkdm_lab.metrics.scores.require", lambda *arguments: None)
    monkeypatch.setattr(book, "subprocess", SimpleNamespace(Popen=begin))
    teacher = SimpleNamespace(denoiser=SimpleNamespace(condition=None))
    monkeypatch.setattr(cli, "_teacher", lambda options: teacher)
    monkeypatch.setenv("DKDM_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def run(*arguments):
        capsys.readouterr()
        try:
            code = cli.main([*arguments])
        except Began:
            return None
        except SystemExit as refused:
            code = refused.code
        said = capsys.readouterr().err.splitlines()
        assert code in (1, 2), (arguments, code)
        assert said and "Traceback" not in said, arguments
        assert sorted(tmp_path.rglob("*")) == before, arguments
        sentence = said[-1]
        assert code == 2 or (len(said) == 1 and sentence.startswith("dkdm: ")), (arguments, said)
        return sentence

    return run


# -- values made from types and ranges -----------------------------------------------------------------


def inside(expected):
    """Texts that a setting takes: the ends of its range and some between, every word, None."""
    if expected.words:
        found = [*expected.words]
    elif expected.type is bool:
        found = ["True", "False"]
    elif expected.type is int:
        low, high = expected.range.low, expected.range.high
        found = [low, low + 1, high, min(high, low + 1000), hex(low + 2)]
    elif expected.type is float:
        low, high = expected.range.low, expected.range.high
        found = [(low + high) / 2, math.nextafter(low, high), math.nextafter(high, low)]
        found += [int(low)] * (not expected.range.above) + [int(high)] * (not expected.range.below)
    else:
        found = []  # names and tuples, by hand below
    return [str(value) for value in found] + ["None"] * expected.optional


def outside(expected):
    """Texts that it does not take: other types, words for numbers, what lies beyond each end."""
    if expected.type in (dict, tuple):
        return ["abc", "5", "None", "True"]
    found = {str(value) for value in OTHER} | {"-1.5", "10" * 20}
    if expected.range:
        low, high = expected.range.low, expected.range.high
        found |= {str(low - 1), str(high + 1), f"-{'9' * 4400}"}
        found |= {str(low)} if expected.range.above else set()
        found |= {str(high)} if expected.range.below else set()
    if expected.words:
        found |= {f"{expected.words[0]}x", expected.words[0].upper() + "!", "0", "1"}
    legal = set(inside(expected)) | ({"True", "False"} if expected.type is bool else set())
    if expected.type is str and not expected.words:  # any word is a name; a registry is asked in its own test
        found = {"True", "5", "1.5", "''", "'\\n'", "[]", "5e3"} | (set() if expected.optional else {"None"})
    return sorted(found - legal)


# Settings that others limit too: not all of their values go with the rest of their preset or study.
TOGETHER = {
    "T", "steps", "synthetic_steps", "stride", "rho", "curve_samples", "samples", "early_stop", "sampler",
    "classes", "guidance", "reference_images", "teacher_iterations", "teacher_lr", "levels", "name", "live",
    "turns", "replay",
}  # fmt: skip
FREE = ("teacher", "student", "continued")  # of a distillation: any text may be a folder's name
HEAD = {
    Preset: ["train", "--preset", "digits", "--method", "dynamic"],
    Study: ["study", "digits", "--parts", "vae-teacher", "--seeds", "0"],
    Distillation: ["distill", "teacher", "--student", "x0.5", "--out", "out"],
}


def invocations(settings, values):
    """Of every setting: its name, the command line, and whether it is to be accepted, or None if that is
    up to the others."""
    for name, expected in kinds(settings).items():
        if (name in FREE and settings is Distillation) or name == "live":
            continue
        for text in values(expected):
            option = f"--set={name}={text}"
            if settings is Distillation:
                option = f"--{name.replace('_', '-')}={text}"
            yield name, [*HEAD[settings], option]


LEGAL = [(s, *each) for s in HEAD for each in invocations(s, inside)]
ILLEGAL = [(s, *each) for s in HEAD for each in invocations(s, outside)]


def test_there_are_enough_of_them():
    assert len(LEGAL) >= 150 and len(ILLEGAL) >= 600
    for settings in HEAD:
        reached = {name for kind_of, name, _ in ILLEGAL if kind_of is settings}
        assert reached >= {*kinds(settings)} - {"name", "live", *FREE}


@pytest.mark.parametrize("settings", HEAD, ids=lambda settings: settings.__name__)
def test_what_lies_outside_is_refused_in_a_sentence(settings, invoke):
    for kind_of, name, arguments in ILLEGAL:
        if kind_of is settings:
            sentence = invoke(*arguments)
            assert sentence is not None, f"accepted: {arguments[-1][:90]}"
            named = name if settings is not Distillation else rf"(argument --)?{name.replace('_', '[-_]')}"
            assert re.search(rf"(^dkdm|error): {named}: .*(found|invalid choice)", sentence) or (
                name == "name" and "found no setting 'name'" in sentence
            ), sentence
            assert re.search(r"expected|choose from", sentence) and len(sentence) < 1000, sentence


@pytest.mark.parametrize("settings", HEAD, ids=lambda settings: settings.__name__)
def test_what_lies_inside_is_accepted(settings, invoke):
    accepted = set()
    for kind_of, name, arguments in LEGAL:
        if kind_of is settings:
            sentence = invoke(*arguments)
            if sentence is None:
                accepted.add(name)
            else:  # by what another setting allows
                assert name in TOGETHER and settings is not Distillation, (arguments[-1], sentence)
                assert re.match(r"dkdm: \w+: found .*, expected ", sentence), sentence
    assert accepted >= {name for kind_of, name, _ in LEGAL if kind_of is settings} - {"guidance"}


def test_guidance_is_accepted_where_there_are_classes(invoke):
    words = ["--set=guidance=2", "--set=sample_guidance=0"]
    assert invoke("train", "--preset=digits-classes", "--method=dynamic", *words) is None


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_presets_own_values_are_accepted_as_settings(preset, invoke):
    own = presets.PRESETS[preset]
    if own.pipeline and "/" in own.pipeline:  # a teacher from the Hub, or a file that is not here
        pytest.skip("its teacher is not in book/models")
    words = [
        f"--set={name}={getattr(own, name)!r}"
        for name, expected in kinds(Preset).items()
        if name not in ("name", "live") and not expected.named
    ]
    assert invoke("train", "--preset", preset, "--method", "dynamic", *words) is None


WORDS = [
    "", " ", "-", "--", "=", "--set", "--set=", "--set==", "--set=ema", "--set=ema=", "--seeds", "--seeds=",
    "--seeds=0,", "--seeds=-1", "--seed=1.0", "--seed=True", "--seed=1e3", "--minutes", "--minutes=0",
    "--minutes=-inf", "--preset", "--preset=", "--preset=../..", "--method=", "--method=dynamic",
    "--method=DYNAMIC", "--methods=,", "--methods=magic", "--jobs=0", "--jobs=True", "--chapters=",
    "--chapters=00", "--chapters=99", "--parts=", "--parts=vae", "--publish", "--ledger", "--out=",
    "--out=/dev/null", "--out=/dev/null/x", "--out=" + "x" * 5000, "--out=\0", "--set=live={}",
    "--set=self=1",
    "--set=T=((((((", "--set=\0=1", "--set=é=1", "--set=T=" + "(" * 9000, "--set=T={[]: 1}", "--set=name='x'",
    "--evaluate=4", "--evaluate=-1", "--samples=-1", "--size=0", "--steps=1", "--null-class=-1",
    "--compile=fast", "--schedule=x", "--student=", "--prompts=nowhere.txt", "digits", "teacher", "🙂",
]  # fmt: skip


def test_odd_command_lines_are_refused_or_begin_but_never_fail(invoke):
    """300 of them, of a fixed seed: a command and up to four odd words."""
    random_ = random.Random(24)
    commands = ["run", "train", "measure", "study", "distill", "publish", "pack", "unpack", "", "trian"]
    # Its whole head where it has one, so that the odd words are what is looked at.
    heads = {"train": HEAD[Preset], "study": HEAD[Study], "distill": HEAD[Distillation]}
    heads |= {"run": ["run", "--chapters=00"], "publish": ["publish", "--out=x"], "pack": ["pack", "--out=x"]}
    began = 0
    for _ in range(300):
        command = random_.choice(commands)
        odd = random_.sample(WORDS, random_.randint(1, 4))
        began += invoke(*random_.choice([heads.get(command, [command]), [command]]), *odd) is None
    assert 0 < began < 150  # most have something that is wrong


# -- settings that do not go together, and what can be known before the first hour ---------------------


@pytest.mark.parametrize(
    "preset, changes, sentence",
    [
        ("digits", "early_stop=True,curve=0", "curve: found 0, expected at least 1 with early_stop"),
        ("cifar16", "early_stop=True", "curve_samples: found 500, expected None with early_stop"),
        ("digits", "curve_samples=2001", "curve_samples: found 2001, expected at most samples: 2,000"),
        ("digits", "iterations=0", "iterations: found 0, expected a whole number from 1 to 1,000,000,000"),
        ("digits", "teacher_iterations=0", "teacher_iterations: found 0, expected at least 1 where"),
        ("digits", "teacher_lr=0", "teacher_lr: found 0.0, expected above 0 where"),
        (
            "digits",
            "reference_images=-1",
            "reference_images: found -1, expected None or a whole",
        ),
        ("digits", "reference_images=4", "reference_images: found 4, expected None or a whole number from 5"),
        ("digits", "reference_images=1798", "reference_images: found 1798, expected at most 1,797"),
        ("toy", "samples=1", "samples: found 1, expected a whole number from 5"),
        ("toy", "pipeline=digits-teacher", "pipeline: found 'digits-teacher', expected None: the toy's"),
        ("toy", "student=digits-student", "student: found 'digits-student', expected toy-student for toy"),
        ("digits", "pipeline=digits-taecher", "pipeline: found 'digits-taecher'; "),
        ("digits", "rho=0.004", "rho: found 0.004, expected at least 1 / T, one batch, T = 100"),
        ("digits", "stride=101", "stride: found 101, expected at most T = 100"),
        ("digits", "steps=101", "steps: found 101, expected at most T = 100"),
        ("digits-latent", "steps=51", "steps: found 51, expected as many levels as a whole stride visits"),
        ("digits", "guidance=2", "guidance: found 2.0, expected 1 where classes is None"),
        ("digits", "classes=10", "student: found 'digits-student', expected a network that takes labels"),
        (
            "digits",
            "student=cnn-14m",
            "student: found 'cnn-14m', expected a network for samples of (1,",
        ),
        (
            "digits",
            "teacher=cnn-14m",
            "teacher: found 'cnn-14m', expected a network for samples of (1,",
        ),
        ("digits-latent", "variance=learned", "variance: found 'learned', expected None, small, large"),
        ("fashion", "autoencoder=digits-vq", "autoencoder: found 'digits-vq', expected None: the book's own"),
        ("digits", "data=nowhere", "data: found 'nowhere', expected one of toy, digits, cifar16, cifar10"),
        ("digits", "student=resnet", "student: found 'resnet', expected one of cnn-57m, cnn-44m"),
        ("digits", "mixed_precision=int4", "mixed_precision: found 'int4', expected one of no, bf16, fp16"),
    ],
)
def test_settings_that_cannot_end_well_are_refused(preset, changes, sentence, invoke):
    words = [f"--set={change}" for change in changes.split(",")]
    for command in (["train", "--method", "dynamic"], ["run", "--ledger"]):
        assert invoke(*command, "--preset", preset, *words).startswith(f"dkdm: {sentence}")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("samples=1", "samples: found 1, expected a whole number from 2"),
        ("samples=300", "samples: found 300, expected at most 299, those that are held out"),
        ("classes=(5,)", "classes: found (5,), expected at least two, each once"),
        ("classes=(5, 10)", "classes: found (5, 10), expected some of the digits 0 to 9"),
        ("classes=(5, True)", "classes: found (5, True), expected a tuple, each of it a whole number"),
        ("levels=4", "levels: found 4, expected such that 2 ** levels divides 8"),
        ("prompts=('a digit',)", "prompts: found ('a digit',), expected none, or one for each of 5 classes"),
        ("guide=resnet", "guide: found 'resnet', expected one of cnn-57m"),
        ("data=mnist", "data: found 'mnist', expected one of toy, digits"),
    ],
)
def test_a_study_that_cannot_end_well_is_refused(change, sentence, invoke):
    assert invoke("study", f"--set={change}").startswith(f"dkdm: {sentence}")


@pytest.mark.parametrize(
    "method, changes, sentence",
    [
        (
            "data-free",
            ["synthetic_images=100"],
            "synthetic_images: found 100, expected at least one batch",
        ),
        ("magic", [], "method: found 'magic', expected one of teacher, synthetic"),
    ],
)
def test_a_method_that_a_preset_cannot_have_is_refused(method, changes, sentence, invoke):
    words = [f"--set={change}" for change in changes]
    assert invoke("train", "--preset=digits", "--method", method, *words).startswith(f"dkdm: {sentence}")


def test_a_class_conditional_preset_has_no_data_limited_run(invoke):
    sentence = invoke("train", "--preset=digits-classes", "--method=data-limited")
    assert sentence == "dkdm: data-limited: not for the class-conditional preset digits-classes"


@pytest.mark.parametrize("command", [["distill", "teacher", "--student", "x1"], ["publish"], ["pack"]])
@pytest.mark.parametrize("out", ["file", "file/out"])
def test_an_out_that_cannot_be_written_is_refused(command, out, invoke, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        cli.main([*command, "--out", out])
    assert refused.value.code == 2
    assert f"--out: found '{out}', expected a place for files (" in capsys.readouterr().err


def test_a_comparison_that_cannot_be_made_is_refused_before_the_teacher_is_read(
    monkeypatch, tmp_path, capsys
):
    def no_weights(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("dkdm_lab.metrics.inception.load_state_dict_from_url", no_weights)
    monkeypatch.setattr(cli, "_teacher", begin)
    head = ["distill", "teacher", "--student", "x0.5", "--out", str(tmp_path / "out")]
    assert cli.main([*head, "--evaluate", "4"]) == 1
    assert "images: found 4, expected at least 5" in capsys.readouterr().err
    assert cli.main([*head, "--evaluate", "10"]) == 1
    assert "found no Inception weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"seed": -1}, "seed: found -1, expected a whole number from 0"),
        ({"seed": True}, "seed: found True, expected a whole number"),
        ({"changes": 5}, "changes: found 5, expected a dict"),
        ({"changes": {"ema": 2}}, "ema: found 2, expected a number from 0 to below 1"),
        ({"preset": "mnist"}, "preset: found 'mnist', expected one of toy"),
        ({"ema": 2}, "ema: found 2, expected a number from 0 to below 1"),
    ],
)
def test_papermills_parameters_are_checked_before_a_chapter_begins(settings, sentence, tmp_path):
    head = "# ---\n# jupyter:\n#   kernelspec:\n#     display_name: Python 3\n#     language: python\n"
    cell = '# %% tags=["parameters"]\npreset = "digits"\nseed = 0\nchanges = {}\n'
    text = f"{head}#     name: python3\n# ---\n\n{cell}"
    (tmp_path / "00_one.py").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        book.run_chapters(settings=settings, book=tmp_path)
    assert not list(tmp_path.glob("*.ipynb"))


# -- one thing is stated once --------------------------------------------------------------------------


def test_the_words_of_settings_are_those_that_the_module_knows():
    assert get_args(Storage) == tuple(STORAGES)
    assert get_args(Variance) == VARIANCES
    assert kinds(Preset)["warmup"].words == tuple(WARMUPS)
    assert kind(Scored).range.low == FEWEST
    for schedule in kinds(Preset)["schedule"].words:
        assert getattr(GaussianDiffusion, schedule)(100).T == 100


def test_whole_numbers_become_floats_and_lists_tuples():
    """One value has one name: runs are named by what their settings print."""
    preset = presets.get("digits", rho=1)
    assert repr(preset.rho) == "1.0" and Run(preset, "dynamic").name == "dynamic-seed0-rho=1.0"
    assert studies.get("digits", classes=[5, 6], samples=100).classes == (5, 6)


@pytest.mark.parametrize(
    "arguments, settings",
    [(["train", "--help"], Preset), (["run", "--help"], Preset), (["study", "--help"], Study)],
)
def test_help_lists_every_setting_with_type_default_and_meaning(arguments, settings, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    said = capsys.readouterr().out
    own = presets.get("digits") if settings is Preset else studies.get("digits")
    for name, expected in kinds(settings).items():
        if name not in ("name", "live"):
            assert f"  {name}: {expected} (default: {getattr(own, name)!r})\n" in said
            assert expected.meaning in said
            assert settings is Study or expected.meaning or expected.named, name


def test_help_of_distill_lists_its_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["distill", "--help"])
    said = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for name, expected in kinds(Distillation).items():
        assert name in ("teacher", "student") or f"--{name.replace('_', '-')}" in said
        assert expected.meaning.replace("- ", "-") in said


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom dkdm_lab import cli\n"
        "for command in ([], ['train'], ['distill']):\n"
        "    try:\n        cli.main([*command, '--help'])\n    except SystemExit:\n        pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
