"""The command line: each command is the signature and the docstring of a public function, nothing more.

Exit codes: 0 done, 1 done with failures listed, 2 bad input, 130 interrupted, 143 terminated; a training that SIGTERM
asked to save and stop has done so with 0. With SOTR_DEBUG=1 in
the environment errors show where they come from.
"""

import ast
import importlib
import inspect
import io
import os
import re
import runpy
import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, set_parsing_settings

from sotr import startup
from sotr.errors import SOTRError, nearest
from sotr.files import read_settings


@dataclass(frozen=True)
class Command:
    """Where a command's function lives; it is imported only when the command is called, so that help is quick."""

    module: str
    help: str
    positional: tuple[str, ...] = ()
    """Optional parameters to be given without a flag; required ones always are."""
    extra: str | None = None
    """The extra of this package that the command needs."""
    function: str | None = None
    """The function's name, if it is not the command's with underscores."""


COMMANDS = {
    "predict": Command("sotr.prediction", "segment images, folders of them, or globs"),
    "train": Command("sotr.training", "train a model on COCO-format data", positional=("data",), extra="train"),
    "evaluate": Command("sotr.evaluation", "measure a model's COCO mask AP on a data set"),
    "export": Command(
        "sotr.export", "write a model for ONNX Runtime or OpenVINO", positional=("model",), extra="export"
    ),
    "serve": Command("sotr.serving", "serve a model over HTTP, with a page to try it", extra="serve"),
    "pre-annotate": Command("sotr.curation.pre_annotate", "turn predictions into Label Studio tasks to correct"),
    "convert-released": Command("sotr.conversion", "turn the authors' released checkpoint into a model folder"),
    "reproduce": Command("sotr.reproduction", "train and measure the rows of the paper's Tables 1 to 5", extra="train"),
    "explain": Command("sotr.explanation", "draw mask features, class scores and attention inside a model"),
    "info": Command("sotr.info", "show parameters and multiply-accumulates per component", positional=("model",)),
    "doctor": Command("sotr.doctor", "show versions, devices, extras and caches for a bug report"),
    "data check": Command("sotr.curation", "look a data set over, and repair it", function="check_data"),
    "data convert": Command(
        "sotr.curation.convert", "turn data sets of other formats and tools into COCO", function="convert_data"
    ),
    "data show": Command("sotr.curation", "draw labeled images on one sheet", function="show_data"),
    "data synthesize": Command(
        "sotr.curation.synthetic", "make a data set of overlapping shapes", function="write_synthetic"
    ),
}
"""Command, of one word or two, -> its function."""

MOVED = {"benchmark": "measuring is part of the repository now: python -m benchmarks NAME in a checkout of it"}
"""Former commands, and what took their places."""

GROUPS = {"data": "check, convert, show or make a data set"}
"""First words of commands of two."""

ALSO = {"max_objects": "--max-dets"}
"""Parameter -> another flag that sets it."""

HABITS = {
    "conf": "score", "confidence": "score", "threshold": "score", "thresh": "score", "weights": "model", "m": "model",
    "checkpoint": "model", "o": "out", "output": "out", "project": "out", "save_dir": "out", "batch": "batch_size",
    "imgsz": "image_size", "img_size": "image_size", "max_det": "max_objects", "class": "classes", "lr0": "lr",
    "source": "", "input": "", "images": "", "i": "", "image": "",
}  # fmt: skip
"""Settings of other tools -> parameters here; empty for what a command takes first, without a flag."""

COMPLETION = "--print_completion"
"""The parser's own flag that prints a script for shells, which needs the package shtab."""

DESCRIPTION = "SOTR: instance segmentation with transformers. `sotr COMMAND --help` explains a command."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs `arguments` (default: those of the process) and exits with the code they deserve."""
    # By default SIGTERM kills the process on the spot, half-written files and all; this way it cleans up first.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # PyTorch reads this when it is imported, by a command: memory for large maps then comes in pages of 2 MiB, where
    # the system has such, and is there in a quarter of the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have characters that the console's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code; `--help`, `--version` and `--print_config` exit by themselves."""
    words = [_with_hyphens(word) for word in arguments]
    complete = COMPLETION in [word.partition("=")[0] for word in words[:1]]
    chosen = None if complete else _chosen(words)
    try:
        if chosen in MOVED:
            raise SOTRError(f"sotr {chosen}: {MOVED[chosen]}")
        helped = bool({"-h", "--help"} & set(words))
        if complete:
            set_parsing_settings(add_print_completion_argument=True)
        parser, function = build_parser(chosen, helped or complete, complete)
        if not words:
            parser.print_help()
            return 0
        if words in [[group] for group in GROUPS]:
            words.append("--help")
        if function is not None and chosen is not None:
            if not helped:
                _check_words(words, chosen, function)
            words = _configs_first(words, chosen, function)
        settings = parser.parse_args(words)
        if function is None or chosen is None:
            raise SOTRError(f"name a command: {', '.join(COMMANDS)}")
        values = settings[chosen.replace(" ", ".")].as_dict()
        values.pop("config", None)
        startup.wanted = chosen == "predict"
        result = function(**values)
        return 1 if getattr(result, "failures", None) else 0
    except (SOTRError, ArgumentError) as error:
        if os.environ.get("SOTR_DEBUG") == "1":
            raise
        print(f"error: {one_line(error, chosen)}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)  # noqa: T201
        return int(getattr(interrupt, "exit_code", 130))


def build_parser(
    chosen: str | None, help_only: bool = False, complete: bool = False
) -> tuple[ArgumentParser, Callable[..., Any] | None]:
    """The parser, with the arguments of the chosen command only, and that command's function.

    Args:
        chosen: the command.
        help_only: whether the function will not be called, so that packages it needs may be missing.
        complete: whether every command gets its arguments.

    Raises:
        SOTRError: the packages that the command needs are not installed.
    """
    parser = ArgumentParser(
        prog="sotr", description=DESCRIPTION, version=version("sotr"), exit_on_error=False, allow_abbrev=False
    )
    commands = parser.add_subcommands(required=False, dest="command", metavar="COMMAND")
    places = {"": commands}
    for group, purpose in GROUPS.items():
        group_parser = ArgumentParser(description=f"{purpose.capitalize()}.", exit_on_error=False, allow_abbrev=False)
        commands.add_subcommand(group, group_parser, help=purpose)
        places[group] = group_parser.add_subcommands(required=False, dest="command", metavar="COMMAND")
    chosen_function = None
    for name, command in COMMANDS.items():
        if name == chosen or complete:
            try:
                chosen_function = _import(name, command)
            except SOTRError:
                if not help_only or command.extra is None:
                    raise
                chosen_function = signature_of(name, command)
            subparser = command_parser(chosen_function, command.positional)
        else:
            subparser = ArgumentParser(exit_on_error=False)
        group, _, own = name.rpartition(" ")
        places[group].add_subcommand(own, subparser, help=command.help)
    return parser, chosen_function


def command_parser(function: Callable[..., Any], positional: Sequence[str] = ()) -> ArgumentParser:
    """Turn a function's parameters into arguments: required ones and `positional` by position, the others as flags.

    Help comes from the docstring; a bool becomes --name / --no-name; `--config FILE.yaml` sets several at once.
    """
    documentation = parse_docstring(function.__doc__ or "")
    helps = {name.strip(): entry.description for entry in documentation.params for name in entry.arg_name.split(",")}
    types_of = get_type_hints(function)
    parser = ArgumentParser(description=documentation.short_description, exit_on_error=False, allow_abbrev=False)
    for name, parameter in inspect.signature(function).parameters.items():
        value_type = types_of.get(name, str)
        options: dict[str, Any] = {"help": " ".join((helps.get(name) or name).split())}
        required = parameter.default is inspect.Parameter.empty
        if required or name in positional:
            many = _is_list(value_type)
            options |= {"type": str if many else _plain_type(value_type), "metavar": name.upper()}
            if many:
                parser.add_argument(name, nargs="+", **options)
            elif required:
                parser.add_argument(name, **options)
            else:
                parser.add_argument(name, nargs="?", default=parameter.default, **options)
            continue
        flags = [f"--{name.replace('_', '-')}"] + [also for also in [ALSO.get(name)] if also]
        options["default"] = parameter.default
        if value_type is bool:
            parser.add_argument(*flags, action=ActionYesNo(no_prefix="no-"), **options)
        else:
            parser.add_argument(*flags, type=_plain_type(value_type), **options)
    parser.add_argument("--config", action="config", help="YAML file with settings by name; flags win over it.")
    return parser


def _chosen(words: Sequence[str]) -> str | None:
    """The command that the words name: the first that is no flag, or the first two."""
    names = [word for word in words if not word.startswith("-")][:2]
    return " ".join(names if names and names[0] in GROUPS else names[:1]) or None


def _import(name: str, command: Command) -> Callable[..., Any]:
    """The function of a command."""
    try:
        module = importlib.import_module(command.module)
        function: Callable[..., Any] = getattr(module, command.function or name.replace("-", "_"))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sotr":
            raise
        wanted = f"'sotr[{command.extra}]'" if command.extra else "sotr"
        raise SOTRError(f"sotr {name} needs the package {error.name}; install it with: pip install {wanted}") from error
    return function


def signature_of(name: str, command: Command) -> Callable[..., Any]:
    """A function that does nothing, but has the signature and the docstring of a command's: they are read from the
    source, because the packages that the function needs are missing. Types from these become `Any`."""
    wanted = command.function or name.replace("-", "_")
    package = Path(__file__).parent.joinpath(*command.module.split(".")[1:])
    for path in [package.with_suffix(".py")] if package.with_suffix(".py").is_file() else sorted(package.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == wanted]
        if own:
            break
    origins = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    class Names(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            if key not in origins:
                raise KeyError(key)
            try:
                return getattr(importlib.import_module(origins[key]), key)
            except ModuleNotFoundError:
                alone = Path(__file__).parent.joinpath(*origins[key].split(".")[1:]).with_suffix(".py")
            try:  # the file may need less than its package
                return runpy.run_path(str(alone))[key]
            except (ModuleNotFoundError, FileNotFoundError):
                return Any

    names: Any = Names()
    own[0].decorator_list, own[0].returns, own[0].body = [], None, own[0].body[:1]
    exec(compile(ast.Module([*own], []), str(path), "exec"), {}, names)  # of this package's own source
    function: Callable[..., Any] = names[wanted]
    return function


def _check_words(words: Sequence[str], chosen: str, function: Callable[..., Any]) -> None:
    """Refuse unknown flags and NAME=VALUE without hyphens, with the flag that was probably meant.

    Raises:
        SOTRError: names the word.
    """
    parameters = inspect.signature(function).parameters
    positional = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty]
    positional += [name for name in COMMANDS[chosen].positional if name not in positional]
    names = [name for name in parameters if name not in positional]
    switches = [f"no_{name}" for name in names if parameters[name].annotation is bool]
    flags = {f"--{name.replace('_', '-')}" for name in [*names, *switches, "config"]}
    flags |= {ALSO[name] for name in names if name in ALSO}
    help_too = f"; see sotr {chosen} --help"
    before = ""
    for word in words[words.index(chosen.split()[-1]) + 1 :]:
        if word == "--":
            return
        flag, equals, value = word.partition("=")
        key = flag.lstrip("-").replace("-", "_")
        meant = HABITS.get(key, key)
        given = positional and meant in ("", *positional)
        if flag.startswith("-") and not re.match(r"-[\d.]", flag) and flag not in flags and "print_" not in flag:
            hint = nearest(meant.replace("_", "-"), [known.lstrip("-") for known in flags]).replace("'", "'--", 1)
            hint = f"; give {positional[0]} without a flag: sotr {chosen} {positional[0].upper()}" if given else hint
            raise SOTRError(f"unrecognized argument {flag}{hint}{help_too}")
        if equals and not flag.startswith("-") and not before.startswith("-") and not Path(word).exists():
            if meant in names:
                raise SOTRError(f"{word} is no flag; did you mean '--{meant.replace('_', '-')} {value}'?{help_too}")
            if given and key.isidentifier():
                raise SOTRError(f"{word}: give {positional[0]} without its name: sotr {chosen} {value}{help_too}")
        before = word


def _with_hyphens(word: str) -> str:
    """`--max_objects=3` -> `--max-objects=3`: flags may be spelt like the parameters they set."""
    if not word.startswith("--") or word.startswith("--print_"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _configs_first(words: Sequence[str], chosen: str, function: Callable[..., Any]) -> list[str]:
    """The words with each `--config FILE`, whose contents are checked, right behind the command.

    The parser lets what comes later win: this way the command line wins over the files, wherever it names them.
    """
    command = words.index(chosen.split()[-1])
    configs: list[str] = []
    others: list[str] = []
    rest = iter(words[command + 1 :])
    for word in rest:
        if word == "--":
            others += [word, *rest]
        elif word == "--config" and (path := next(rest, None)) is not None:
            configs += [word, path]
        elif word.startswith("--config="):
            configs += word.split("=", 1)
        else:
            others.append(word)
    for file in configs[1::2]:
        _check_config(Path(file), function)
    return [*words[: command + 1], *configs, *others]


def _check_config(path: Path, function: Callable[..., Any]) -> None:
    """Refuse a file that does not hold settings of `function`; of wrong values the parser tells.

    Raises:
        SOTRError: names the file and what is wrong with it.
    """
    types_of = get_type_hints(function)
    known = list(inspect.signature(function).parameters)
    settings = read_settings(path, known)
    for name, value in settings.items():
        if name not in known:
            hint = nearest(str(name), known)
            raise SOTRError(f"{path}: there is no setting {str(name)!r}{hint}; the settings are {', '.join(known)}")
        if _is_list(types_of.get(name)) and not (isinstance(value, list) and value):
            raise SOTRError(f"{path}: {name} is {value!r}; give a list, such as [{value or '...'}]")


def one_line(error: Exception, chosen: str | None = None) -> str:
    """The error's message on one line; of the parser's without its inner life, and with the way to the help."""
    message = " ".join(str(error).split())
    if isinstance(error, SOTRError):
        return message
    wrong_value = re.match(r'Parser key "(?:[\w-]+\.)*(\w+)": .*(?:Given|Got) value:(.*)', message)
    if wrong_value:
        name, value = wrong_value.groups()
        message = f"{name.replace('_', '-')} cannot be {value.strip() or 'empty'}"
    elif chosen and "arguments are required: " in message:
        message = message.replace(f"{chosen.replace(' ', '.')}.", "")
    if chosen and "invalid choice" in message:
        message += nearest(chosen, COMMANDS)
    known = chosen if chosen in COMMANDS else (chosen or "").partition(" ")[0]
    return f"{message}; see sotr {f'{known} ' if known in COMMANDS or known in GROUPS else ''}--help"


def _is_list(value_type: Any) -> bool:
    origin = get_origin(value_type)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _plain_type(value_type: Any) -> Any:
    """On a command line a path is a word: `str | Path` -> `str`, `str | Path | None` -> `str | None`."""
    if get_origin(value_type) not in (Union, types.UnionType):
        return value_type
    members = get_args(value_type)
    if str not in members:
        return value_type
    return str | None if type(None) in members else str


if __name__ == "__main__":
    main()
