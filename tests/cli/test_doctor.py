"""`mvrec doctor` is the doctor."""

from lightning_mvrec import doctor
from lightning_mvrec.cli import doctor as command


def test_the_command_is_the_doctor():
    assert command.main is doctor.main
