import os
import subprocess
import sys

import pytest

from moeapps.cli.main import main

LIGHT = [
    ["--help"], ["--version"], ["list"], ["info", "mowst"], ["info", "MowstClassifier"],
    ["data", "list"], ["doctor"], ["fit", "--help"], ["quickstart", "--help"], ["report", "--help"],
    ["diagnose", "--help"],
]  # fmt: skip
HEAVY = ("torch", "lightning", "torch_geometric", "matplotlib", "jsonargparse")


@pytest.mark.parametrize("command", LIGHT, ids=" ".join)
def test_command_answers_without_torch(command, tmp_path):
    code = (
        "import sys; from moeapps.cli.main import main\n"
        f"try: main({command!r})\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "LOADED []" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_model_is_one_line_with_close_names(capsys):
    assert main(["info", "mowts"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Unknown name 'mowts'. Did you mean 'mowst'" in captured.err
    assert "Traceback" not in captured.err


def test_debug_switch_shows_where_an_error_comes_from(monkeypatch):
    from moeapps.errors import UnknownNameError

    monkeypatch.setenv("MOEAPPS_DEBUG", "1")
    with pytest.raises(UnknownNameError):
        main(["info", "mowts"])


def test_list_takes_a_pattern(capsys):
    assert main(["list", "*/mow*"]) == 0
    out = capsys.readouterr().out
    assert "graphs/mowst" in out
    assert "graphs/gcn" not in out
    assert main(["list", "nothing*"]) == 2


def test_info_shows_arguments_and_paper(capsys):
    assert main(["info", "graphs/mowst"]) == 0
    out = capsys.readouterr().out
    for part in ("ICLR 2024", "strong: str = 'gcn'", "create_model", "moeapps[graphs]"):
        assert part in out


def test_interrupt_is_code_130(monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("moeapps.cli.list_models.list_models", stop)
    assert main(["list"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_no_command_prints_help(capsys):
    assert main([]) == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "either --config FILE"),
        (["fit", "--config", "a", "--resume", "b"], "either --config FILE"),
        (["fit", "--config", "nothing.yaml"], "no configuration nothing.yaml"),
        (["fit", "--resume", "nothing"], "not a run folder"),
        (["fit", "--config", "a", "--checkpoint-seconds", "-1"], "0 or more"),
        (["report", "nothing"], "not a run folder"),
        (["test", "--ckpt", "nothing.ckpt"], "no checkpoint nothing.ckpt"),
        (["export", "nothing"], "no checkpoint nothing"),
        (["quickstart", "--seeds", "0"], "--seeds 0 is too small"),
        (["quickstart", "--only", "graph"], "Did you mean 'graphs'"),
    ],
)
def test_mistakes_exit_with_two_and_a_reason(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def all_flags() -> str:
    """Every flag and positional of every command, one line each."""
    import argparse

    from moeapps.cli.main import build_parser

    lines = []

    def walk(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in dict.fromkeys(action.choices.values()):
                    walk(child)
            elif not isinstance(action, argparse._HelpAction):
                name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
                choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
                default = (
                    "" if action.default in (None, False, argparse.SUPPRESS) else action.default
                )
                lines.append(f"{parser.prog} {name}{choices} {default}".rstrip())

    walk(build_parser())
    return "\n".join(sorted(lines)) + "\n"


def test_flags_are_those_of_the_list_in_the_repository():
    """A flag that changes breaks somebody's script: change flags.txt on purpose."""
    from pathlib import Path

    assert all_flags() == Path(__file__).with_name("flags.txt").read_text()
