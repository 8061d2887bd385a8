import pytest
import torch
from torchrec import EmbeddingBagCollection

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InInit, batches, loader, trainer


@pytest.mark.parametrize(
    "plan",
    [
        {"sharding": {"item": "row_wise", "user": "table_wise"}},
        {"replicate": "all"},
    ],
)
def test_a_plain_copy_predicts_what_the_trained_module_predicts(plan):
    def run():
        module = InInit()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), **plan))
        runner.fit(module, loader())
        trained = runner.predict(module, loader(2))
        sharded = module.embeddings
        plain = plain_module(runner).eval()
        assert module.embeddings is sharded
        assert type(plain.embeddings) is EmbeddingBagCollection
        with torch.no_grad():
            for batch, expected in zip(batches(2), trained, strict=True):
                assert torch.allclose(plain(batch), expected, atol=1e-6)
        runner.fit_loop.max_epochs = 2
        runner.fit(module, loader())  # the trained one still trains
        return plain.state_dict()

    first, second = run_ranks(run, 2)
    assert first["embeddings.embedding_bags.item.weight"].shape == (50, 8)
    for key, value in first.items():
        assert torch.equal(value, second[key])


def test_a_plain_copy_of_strategy_or_module_and_a_second_training():
    def run():
        module = InInit()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1)))
        runner.fit(module, loader(2))
        first, second = plain_module(runner.strategy), plain_module(module)
        assert torch.equal(first.tower[0].weight, second.tower[0].weight)
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.3), replicate="all")).fit(first, loader(2))
        return not torch.equal(
            first.state_dict()["embeddings.embedding_bags.user.weight"],
            second.state_dict()["embeddings.embedding_bags.user.weight"],
        )

    assert run_ranks(run, 1) == [True]


def test_what_cannot_be_made_plain_is_refused(tmp_path):
    def run():
        with pytest.raises(ValueError, match="no module has been trained with this Trainer yet"):
            plain_module(trainer())
        with pytest.raises(ValueError, match="a path needs a module to fill"):
            plain_module(tmp_path)
        with pytest.raises(ValueError, match=r"meta\.pt is missing"):
            plain_module(tmp_path, InInit())
        (tmp_path / "run" / "last.ckpt").mkdir(parents=True)
        (tmp_path / "run" / "last.ckpt" / "meta.pt").touch()
        with pytest.raises(ValueError, match=r"these inside it are: \['.*run/last\.ckpt'\]"):
            plain_module(tmp_path, InInit())

    run_ranks(run, 1)
