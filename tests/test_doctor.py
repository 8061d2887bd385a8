"""`mvrec doctor` as a person runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_mvrec import doctor
from lightning_mvrec.installation.trio import Found, diagnose

FILE = Path(doctor.__file__)


@pytest.fixture
def machine(monkeypatch):
    """Let the doctor find what a test says."""

    def found(**what):
        monkeypatch.setattr(doctor, "inspect", lambda: Found(python="py", **what))
        monkeypatch.setattr(doctor, "probe", lambda _: None)

    return found


FITTING = {"torch": "2.13.0+cpu", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0", "lightning": "2.6.6"}


def test_the_status_is_0_where_everything_fits(machine, capsys):
    machine(versions=FITTING, fbgemm_files="cpu")
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("Everything fits.\n")


def test_the_status_is_1_and_the_command_is_printed_where_something_is_broken(machine, capsys):
    machine(versions={**FITTING, "torchrec": "1.9.2"}, fbgemm_files="cpu")
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "mend: py -m pip install --no-deps torchrec==1.8.0" in out
    assert "1 thing is broken" in out


def test_advice_does_not_change_the_status(machine, capsys):
    machine(versions=FITTING, fbgemm_files="cpu", driver=True, gpus=1)
    assert doctor.main([]) == 0
    assert "Advice: this machine has 1 GPU(s)" in capsys.readouterr().out


def test_the_report_tells_versions_imports_builds_and_backends():
    found = Found(versions=FITTING, imports={"torch": "", "torchrec": "ImportError: gone", "kernel": ""})
    found.facts = {"gloo": True, "nccl": False, "cuda_available": False, "gpu_names": []}
    lines = [line.split() for line in doctor.report(found, diagnose(found)).splitlines()]
    assert ["torch", "2.13.0+cpu", "works"] in lines
    assert ["torchrec", "1.8.0", "FAILS:", "ImportError:", "gone"] in lines
    assert ["fbgemm-gpu", "-"] in lines
    assert ["machine", "CPU", "(no", "NVIDIA", "driver)"] in lines
    assert ["torch.distributed", "gloo", "yes,", "nccl", "no"] in lines


def test_it_runs_as_a_file_where_nothing_at_all_is_installed(tmp_path):
    # -S leaves out site-packages, -I the environment: as on a machine that has only Python.
    run = subprocess.run([sys.executable, "-I", "-S", FILE], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    assert "torch is not installed; torchrec is not installed" in run.stdout
    assert "-m pip install --no-deps torchrec==1.8.0" in run.stdout


def test_it_runs_where_torchrec_cannot_be_imported(tmp_path):
    for name in ("lightning", "torchmetrics", "pandas"):  # their imports take long and are not asked about
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "torchrec.py").write_text("raise OSError('libnvidia-ml.so.1: cannot open shared object file')")
    run = subprocess.run([sys.executable, FILE], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert run.returncode == 1
    assert "import torchrec fails: OSError: libnvidia-ml.so.1: cannot open" in run.stdout


def test_a_group_without_a_checkout_is_refused(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--install", "--group", "test"])
    assert "--group needs --project" in capsys.readouterr().err
