"""What nobody who trains can act on is not heard, anything else is."""

import os
import subprocess
import sys
import warnings

from torch.distributed._shard._utils import DEPRECATE_MSG

from lightning_mvrec.strategies.noise import quiet


def test_a_batch_made_before_there_is_a_strategy_says_nothing():
    code = (
        "import torch; from torchrec import KeyedJaggedTensor; from lightning_mvrec import TorchRecStrategy; "
        "KeyedJaggedTensor.from_lengths_sync(['a'], torch.tensor([1]), torch.tensor([1]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "is_fx_tracing" not in run.stderr


def test_sharded_tensors_are_no_news_and_other_warnings_are_heard():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        warnings.warn(DEPRECATE_MSG, FutureWarning, stacklevel=1)
        warnings.warn("tables melt", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in heard] == ["tables melt"]
