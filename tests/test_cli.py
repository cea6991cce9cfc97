"""The command line around the functions: arguments, messages and exit codes."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sotr import cli
from sotr.cli import COMMANDS, Command, build_parser, run, signature_of

SAMPLE = '''
import time
from dataclasses import dataclass

from sotr.errors import SOTRError
from sotr.files import atomic_write

calls = []


@dataclass
class Summary:
    failures: list


def sample(pictures: list[str], model: str = "nuclei", score: float = 0.3, max_objects: int | None = None,
           masks: bool = False, overlays: bool = True):
    """Do something to pictures.

    More words that the short help leaves out.

    Args:
        pictures: files, 100 % of them.
        model: what to use,
            on two lines.
        score: lowest score.
        max_objects: at most so many.
        masks, overlays: two switches, 50 % each.
    """
    calls.append((pictures, model, score, max_objects, masks, overlays))
    if model == "bad":
        raise SOTRError("model bad: there is no\\n such model")
    if model == "interrupt":
        raise KeyboardInterrupt
    if model == "resumable":
        raise KeyboardInterrupt("interrupted; to continue: --resume")
    if model == "slow":
        with atomic_write("result.json"):
            print("writing", flush=True)
            time.sleep(60)
    if model == "bug":
        raise RuntimeError("a bug")
    return Summary(failures=["x.png"] if model == "failing" else [])


def needy():
    import no_such_package_anywhere
'''


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """The command `sotr sample`, made of the function above, and the list of its calls."""
    (tmp_path / "sample_command.py").write_text(SAMPLE)
    (tmp_path / "needy_command.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sample_command", raising=False)
    monkeypatch.delenv("SOTR_DEBUG", raising=False)
    monkeypatch.setitem(COMMANDS, "sample", Command("sample_command", "a sample"))
    monkeypatch.setitem(COMMANDS, "needy", Command("needy_command", "lacks a package", extra="train"))
    import sample_command

    return sample_command.calls


def test_arguments_become_parameters(calls: list) -> None:
    assert run(["sample", "a.png", "b.png", "--score", "0.5", "--max-objects=7", "--masks", "--no-overlays"]) == 0
    assert run(["sample", "1"]) == 0
    assert run(["sample", "a", "--max_objects", "9"]) == 0
    assert run(["sample", "a", "--max-dets", "8"]) == 0  # COCO's name
    # What looks like a setting may be a file, or the value of a flag.
    Path("conf=1").touch()
    assert run(["sample", "--model", "score=1", "conf=1", "nope=1", "--", "-x"]) == 0
    assert calls == [
        (["a.png", "b.png"], "nuclei", 0.5, 7, True, False),
        (["1"], "nuclei", 0.3, None, False, True),
        (["a"], "nuclei", 0.3, 9, False, True),
        (["a"], "nuclei", 0.3, 8, False, True),
        (["conf=1", "nope=1", "-x"], "score=1", 0.3, None, False, True),
    ]


def test_the_command_line_wins_over_config_files(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    Path("settings.yaml").write_text("score: 0.7\noverlays: false\nmax_objects: 3\n")
    assert run(["sample", "a", "--config", "settings.yaml", "--score", "0.9"]) == 0
    assert calls == [(["a"], "nuclei", 0.9, 3, False, False)]
    with pytest.raises(SystemExit) as stopped:
        run(["sample", "a", "--score", "0.8", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["pictures"], printed["score"], printed["max_objects"]) == (["a"], 0.8, None)
    Path("printed.yaml").write_text(yaml.safe_dump(printed))
    assert run(["sample", "--config", "printed.yaml"]) == 0
    assert calls[1] == (["a"], "nuclei", 0.8, None, False, True)
    # Wherever it stands; of several files the later one wins.
    assert run(["sample", "b", "--score", "0.6", "--config", "printed.yaml", "--config=settings.yaml"]) == 0
    assert calls[2] == (["b"], "nuclei", 0.6, 3, False, False)
    assert run(["sample", "--config", "printed.yaml", "--", "--config"]) == 0
    assert calls[3][0] == ["--config"]


def test_help_comes_from_the_docstring(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["sample", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Do something to pictures." in text
    assert "files, 100 % of them." in text
    assert "what to use, on two lines. (type: str, default: nuclei)" in text
    assert text.count("two switches, 50 % each.") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample"], "required: pictures; see sotr sample --help"),
        (["sample", "a", "--nope", "3"], "unrecognized argument --nope; see sotr sample --help"),
        (
            ["sample", "a", "--scor", "3"],
            "unrecognized argument --scor, did you mean '--score'?; see sotr sample --help",
        ),
        (["sample", "a", "--conf", "3"], "unrecognized argument --conf, did you mean '--score'?"),
        (["sample", "a", "-m", "b"], "unrecognized argument -m, did you mean '--model'?"),
        (["sample", "a", "--max-det=3"], "unrecognized argument --max-det, did you mean '--max-objects'?"),
        (["sample", "a", "--no-score"], "unrecognized argument --no-score"),
        (["sample", "--source", "a"], "--source; give pictures without a flag: sotr sample PICTURES"),
        (["sample", "--pictures=a"], "--pictures; give pictures without a flag: sotr sample PICTURES"),
        (["sample", "a", "conf=0.5"], "conf=0.5 is no flag; did you mean '--score 0.5'?"),
        (["sample", "source=a"], "source=a: give pictures without its name: sotr sample a"),
        (["smaple", "a"], "did you mean 'sample'?; see sotr --help"),
        (["sample", "a", "--score", "high"], "score cannot be high"),
        (["sample", "a", "--max-objects", "2.5"], "max-objects cannot be 2.5"),
        (["sample", "a", "--config", "none.yaml"], "none.yaml"),
        (["sample", "a", "--config", "broken.yaml"], "broken.yaml"),
        (["sample", "a", "--config", "unknown.yaml"], "unknown.yaml: there is no setting 'nope'; the settings are"),
        (["sample", "a", "--config", "near.yaml"], "no setting 'max_dets', did you mean 'max_objects'?"),
        (["sample", "a", "--config", "empty.yaml"], "empty.yaml must hold 'key: value' lines"),
        (["sample", "a", "--config", "items.yaml"], "items.yaml must hold 'key: value' lines"),
        (["sample", "a", "--config", "binary.yaml"], "binary.yaml is not valid YAML"),
        (["sample", "--config", "one.yaml"], "one.yaml: pictures is 'a.png'; give a list, such as [a.png]"),
        (["sample", "a", "--config", "."], ". cannot be read"),
        (["sample", "a", "--config"], "expected one argument"),
        (["sample", "a", "--score", ""], "score cannot be empty; see sotr sample --help"),
        (["sample", "a", "--model", "bad"], "model bad: there is no such model"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["--nothing"], "--nothing"),
        (["needy"], "pip install 'sotr[train]'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    calls: list, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("broken.yaml").write_text("score: [")
    Path("unknown.yaml").write_text("nope: 3")
    Path("near.yaml").write_text("max_dets: 3")
    Path("empty.yaml").touch()
    Path("items.yaml").write_text("- 3")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    Path("one.yaml").write_text("pictures: a.png")
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err


def test_other_endings(calls: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", "a", "--model", "failing"]) == 1
    assert run(["sample", "a", "--model", "interrupt"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run(["sample", "a", "--model", "resumable"]) == 130
    assert capsys.readouterr().err == "interrupted; to continue: --resume\n"
    with pytest.raises(RuntimeError):
        run(["sample", "a", "--model", "bug"])
    monkeypatch.setenv("SOTR_DEBUG", "1")
    with pytest.raises(cli.SOTRError):
        run(["sample", "a", "--model", "bad"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_written_file(calls: list, tmp_path: Path, number: int, code: int) -> None:
    start = "from sotr.cli import COMMANDS, Command, main; COMMANDS['sample'] = Command('sample_command', ''); main()"
    # A test run in the background ignores Ctrl-C, and hands that on to its children.
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {start}"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "sample", "a", "--model", "slow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp") or "result" in path.name] == []


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    text = capsys.readouterr().out
    assert all(name.split()[0] in text for name in COMMANDS)


def test_commands_of_two_words(
    calls: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "data sample", Command("sample_command", "in a group", function="sample"))
    Path("settings.yaml").write_text("score: 0.7\nmax_objects: 3\n")
    assert run(["data", "sample", "a", "--score", "0.9", "--config", "settings.yaml"]) == 0
    assert calls == [(["a"], "nuclei", 0.9, 3, False, True)]
    for words, message in (
        (["data", "sample"], "required: pictures; see sotr data sample --help"),
        (["data", "sample", "a", "--score", "x"], "score cannot be x; see sotr data sample --help"),
        (["data", "nothing"], "invalid choice: 'nothing'"),
        (["data", "--nothing"], "see sotr data --help"),
    ):
        assert run(words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run(["data"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "in a group" in text
    assert "synthesize" in text


def sotr(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sotr.cli", *words], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_the_real_process_ends_with_the_right_codes(tmp_path: Path) -> None:
    process = sotr("--help", cwd=tmp_path)
    assert process.returncode == 0
    assert "evaluate" in process.stdout
    version = sotr("--version", cwd=tmp_path)
    assert (version.returncode, version.stdout.split()[0]) == (0, "sotr")
    wrong = sotr("nothing", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")


def test_help_does_not_import_pytorch() -> None:
    code = "import sys, sotr.cli\nsotr.cli.run([])\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.extra])
def test_help_needs_no_extra(name: str) -> None:
    """What is read from the source is what the function has."""
    _, function = build_parser(name)
    read = signature_of(name, COMMANDS[name])
    assert function is not None
    assert inspect.signature(read).parameters == inspect.signature(function).parameters
    assert read.__doc__ == function.__doc__


def test_help_of_commands_whose_packages_are_missing() -> None:
    code = """import sys
for name in ("lightning", "fastapi", "uvicorn", "onnx", "onnx_ir"):
    sys.modules[name] = None
from sotr.cli import run
for name in ("train", "export", "serve"):
    try:
        run([name, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
assert run(["serve"]) == 2
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for words in ("[--recipe RECIPE]", "[--format {onnx,openvino}]", "[--host HOST]", "default: 32000000"):
        assert words in shown.stdout
    assert shown.stderr == ("error: sotr serve needs the package fastapi; install it with: pip install 'sotr[serve]'\n")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_documents_every_parameter(name: str) -> None:
    """A parameter without words in the docstring would show its bare name as help."""
    _, function = build_parser(name)
    assert function is not None
    documentation = cli.parse_docstring(function.__doc__ or "")
    described = {word.strip() for entry in documentation.params for word in entry.arg_name.split(",")}
    assert set(cli.inspect.signature(function).parameters) <= described
    assert documentation.short_description
