"""The command's frame: help, extras, exit codes."""

from __future__ import annotations

import fresh
import pytest
from cli_helpers import command

from lightkernels import __version__, cli

EXTRAS = ("typer", "rich", "matplotlib", "sklearn")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--help"], ["help"]):
        assert cli.main(args) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightkernels {__version__}\n"


def test_unknown_command_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quickstrat"]) == 2
    assert "no command 'quickstrat'; there are quickstart, evaluate, info" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.modules])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert cli.COMMANDS[name].help in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.modules])
def test_missing_extra_is_one_line_with_the_mend(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "missing", lambda modules: list(modules)[-1:])
    assert cli.main([name]) == 1
    printed = capsys.readouterr()
    entry = cli.COMMANDS[name]
    expected = f'lightkernels {name}: needs {entry.modules[-1]}. Hint: pip install "lightkernels[{entry.extra}]"\n'
    assert (printed.out, printed.err) == ("", expected)


def test_without_any_extra_in_a_process_of_its_own() -> None:
    lacking = command("quickstart", hidden=EXTRAS)
    assert lacking.returncode == 1
    assert lacking.stdout == ""
    assert lacking.stderr == (
        'lightkernels quickstart: needs typer, rich, sklearn, matplotlib. Hint: pip install "lightkernels[train]"\n'
    )


def test_missing_finds_what_is_there() -> None:
    assert cli.missing(["torch", "no_such_package_here", "json"]) == ["no_such_package_here"]


def test_ctrl_c_anywhere_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", stop)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "\nlightkernels: interrupted; no file is half-written\n"


def test_a_full_disk_is_one_line() -> None:
    code = "import json, os\nfrom lightkernels import cli\ndef full(args): raise OSError(28, 'No space left')\n"
    code += "cli._dispatch, stdout = full, os.dup(1)\ncode = cli.main(['info'])\n"
    code += "os.dup2(stdout, 1)\nprint(json.dumps(code))"
    assert fresh.run(code) == 1
