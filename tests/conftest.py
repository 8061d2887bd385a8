"""What holds for every test."""

import os

import pytest

# What a Trainer and `mvrec` leave in the environment for the processes that they start themselves.
LEFT_BEHIND = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED", "MVREC_RUN_DIR")


@pytest.fixture(autouse=True)
def nothing_left_for_other_processes():
    """Undo it after each test: a command started by a later test would take the address of an open process group."""
    before = {name: os.environ.get(name) for name in LEFT_BEHIND}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
