"""The command `mvrec` itself: quick, clear, lazy."""

import resource
import subprocess
import sys
import types

import pytest

from lightning_mvrec.cli import main as module
from lightning_mvrec.cli.main import COMMANDS, main


def test_the_list_of_commands_answers_within_one_cpu_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-m", "lightning_mvrec", "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    for command in ("doctor", "prepare", "fit", "validate", "test", "predict", "compare"):
        assert f"\n  {command} " in run.stdout


def test_the_list_of_commands_imports_nothing_heavy():
    code = (
        "import sys; from lightning_mvrec.cli.main import main; main(['--help']); "
        "print([m for m in ('torch', 'numpy', 'pandas', 'lightning', 'jsonargparse') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.endswith("\n[]\n"), run.stdout + run.stderr


def test_a_reader_that_stops_reading_is_no_traceback():
    run = subprocess.run(
        f"{sys.executable} -m lightning_mvrec --help | true", shell=True, capture_output=True, text=True
    )
    assert run.stderr == ""


def test_an_unknown_command_is_one_line_and_status_2(capsys):
    assert main(["fti"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unknown command 'fti'" in err
    assert "fit" in err


def test_no_command_shows_the_list_with_status_2(capsys):
    assert main([]) == 2
    assert "compare" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mvrec 0.")


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of a command's module; yields what it was called with."""
    seen = []

    def put(run):
        def import_module(name):
            seen.append(name.rpartition(".")[2])
            return types.SimpleNamespace(main=lambda *words: seen.extend(words) or run())

        monkeypatch.setattr(module.importlib, "import_module", import_module)
        return seen

    return put


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["compare", "--config", "a.yaml"], ["compare", ["--config", "a.yaml"]]),
        (["validate", "--help"], ["fit", "validate", ["--help"]]),
    ],
)
def test_a_command_gets_its_words_and_its_status_is_kept(command, words, called):
    seen = command(lambda: 3)
    assert main(words) == 3
    assert seen == called


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_its_module(name):
    file = module.SHARED.get(name, name)
    assert (module.Path(module.__file__).parent / f"{file}.py").is_file()


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'torchrec'", name="torchrec"), ImportError("x", name="fbgemm_gpu")]
)
def test_a_library_that_cannot_be_imported_leads_to_the_doctor(command, capsys, error):
    def run():
        raise error

    command(run)
    assert main(["fit"]) == 1
    assert "mvrec doctor" in capsys.readouterr().err


def test_a_library_that_fails_while_loading_leads_to_the_doctor(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "fbgemm_gpu.py").write_text("raise OSError('libnvidia-ml.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fbgemm_gpu", raising=False)

    def run():
        import fbgemm_gpu  # noqa: F401

    command(run)
    assert main(["fit"]) == 1
    err = capsys.readouterr().err
    assert "libnvidia-ml.so.1" in err
    assert "mvrec doctor" in err


def test_a_refusal_of_this_package_is_one_message_without_traceback(command, capsys):
    from lightning_mvrec.schema import View

    command(lambda: View("click", max_len=0))
    assert main(["fit"]) == 1
    err = capsys.readouterr().err
    assert "max_len of view 'click' must be above 0 events, got 0" in err
    assert "Traceback" not in err


def test_a_package_that_is_to_be_installed_is_one_message_without_traceback(command, capsys, monkeypatch):
    from lightning_mvrec.data.engines import DuckDB

    monkeypatch.setitem(sys.modules, "duckdb", None)
    command(lambda: DuckDB().open({}, None, None, None))
    assert main(["fit"]) == 1
    assert "the extra 'scale': pip install 'duckdb" in capsys.readouterr().err


def test_an_import_that_fails_in_this_package_s_own_lines_keeps_its_traceback(command):
    def broken():
        exec(compile("import no_such_module", module.__file__, "exec"))

    command(broken)
    with pytest.raises(ModuleNotFoundError):
        main(["fit"])


def test_the_traceback_is_there_for_who_asks(command, monkeypatch):
    from lightning_mvrec.schema import View

    monkeypatch.setenv(module.TRACEBACK, "1")
    command(lambda: View("click", max_len=0))
    with pytest.raises(ValueError, match="max_len"):
        main(["fit"])


def test_an_error_from_anywhere_else_keeps_its_traceback(command):
    command(lambda: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["fit"])
