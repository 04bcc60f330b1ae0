import subprocess
import sys

import click
import pytest

from infra.errors import InputError
from stream import cli


@pytest.fixture
def verb(monkeypatch):
    """Adds a verb `probe` whose command runs the given function."""

    def add(function):
        command = click.Command("probe", callback=function)
        module = type(sys)("stream.commands.probe_for_test")
        module.command = command
        module.__spec__ = type("Spec", (), {"name": module.__name__})()
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "probe", (module.__name__, "A probe."))

    return add


def raiser(error):
    def function():
        raise error

    return function


def test_done_is_zero(verb, capsys):
    verb(lambda: click.echo("worked"))
    assert cli.run(["probe"]) == 0
    assert capsys.readouterr().out == "worked\n"


def test_a_command_may_return_its_exit_code(verb):
    verb(lambda: 2)
    assert cli.run(["probe"]) == 2


def test_wrong_input_is_two_and_one_line(verb, capsys):
    verb(raiser(InputError("config 'a.toml': key 'x'\nis unknown")))
    assert cli.run(["probe"]) == 2
    assert capsys.readouterr().err == "millrace: config 'a.toml': key 'x' is unknown\n"


def test_a_fault_is_one_and_one_line(verb, capsys):
    verb(raiser(RuntimeError("disk on fire")))
    assert cli.run(["probe"]) == 1
    assert capsys.readouterr().err == "millrace: RuntimeError: disk on fire\n"


def test_traceback_is_shown_on_demand(verb, capsys):
    verb(raiser(RuntimeError("disk on fire")))
    assert cli.run(["--traceback", "probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", (["no-such-verb"], ["probe", "--no-such-option"]))
def test_usage_errors_are_two(verb, arguments, capsys):
    verb(lambda: None)
    assert cli.run(arguments) == 2
    assert "No such" in capsys.readouterr().err


def test_help_lists_only_verbs_that_exist(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "ghost", ("stream.commands.no_such_module", "Not there."))
    assert cli.run(["--help"]) == 0
    assert "ghost" not in capsys.readouterr().out
    assert cli.run(["ghost"]) == 2


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from stream import cli; cli.run(['--help']);"
        "print([m for m in ('torch', 'numba', 'faust', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "stream.cli", "--version"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("millrace, version")
