"""The top of the package is light, and the strategy's name is known when it has to be."""

import subprocess
import sys

import pytest

import lightning_mvrec

HEAVY = ("torch", "numpy", "pandas", "lightning", "torchrec", "scipy", "matplotlib")
QUIET = "import warnings; warnings.simplefilter('ignore')\n"


def run(code):
    """Run code in a fresh Python and return what it printed."""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert run(f"import sys, lightning_mvrec; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_data_that_is_prepared_is_read_without_pandas():
    code = "import sys, lightning_mvrec.data, lightning_mvrec.models, lightning_mvrec.training\n"
    assert run(f"{QUIET}{code}print([m for m in ('pandas', 'pyarrow', 'duckdb') if m in sys.modules])") == "[]"


def test_every_public_name_is_there():
    for name in lightning_mvrec.__all__:
        assert getattr(lightning_mvrec, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Recommander'"):
        lightning_mvrec.Recommander  # noqa: B018


def test_names_are_listed_before_they_are_loaded():
    assert "TorchRecStrategy" in run("import lightning_mvrec; print(dir(lightning_mvrec))")


KNOWN = "import sys; from lightning.pytorch.strategies import StrategyRegistry\n"
KNOWN += "print('torchrec' in StrategyRegistry, 'torchrec' in sys.modules)"


@pytest.mark.parametrize(
    "imports",
    ["from lightning.pytorch import Trainer\nimport lightning_mvrec", "from lightning_mvrec import Schema"],
    ids=["lightning first", "a name first"],
)
def test_the_name_torchrec_is_known_without_importing_torchrec(imports):
    assert run(f"{QUIET}{imports}\n{KNOWN}") == "True False"


def test_a_trainer_makes_the_strategy_of_that_name():
    from lightning.pytorch import Trainer

    lightning_mvrec.Schema  # noqa: B018
    trainer = Trainer(strategy="torchrec", accelerator="cpu", devices=1, barebones=True)
    assert type(trainer.strategy) is lightning_mvrec.TorchRecStrategy


def test_two_lightnings_in_one_program_are_warned_of(monkeypatch):
    from lightning.pytorch import strategies

    monkeypatch.setitem(sys.modules, "pytorch_lightning", sys)
    monkeypatch.setattr(strategies, "StrategyRegistry", type(strategies.StrategyRegistry)())
    with pytest.warns(UserWarning, match=r"from lightning\.pytorch import Trainer"):
        lightning_mvrec._register_strategy()
    assert list(strategies.StrategyRegistry) == ["torchrec"]
