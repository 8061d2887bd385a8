import numpy as np
import pytest

from lightning_mvrec.data.negatives import FullCatalogue, PopularityNegatives, UniformNegatives

POPULARITY = np.array([0, 8, 1, 0, 1])


@pytest.mark.parametrize(
    ("sampler", "chance"),
    [
        (UniformNegatives(4), [1 / 4] * 4),
        (PopularityNegatives(4, alpha=1.0), [8 / 11, 1 / 11, 1 / 11, 1 / 11]),  # an item without events counts as 1
        (PopularityNegatives(4, alpha=0.0), [1 / 4] * 4),
        (PopularityNegatives(4, alpha=1 / 3), [2 / 5, 1 / 5, 1 / 5, 1 / 5]),
    ],
)
def test_draws_follow_the_stated_probabilities_and_never_hit_the_unknown_item(sampler, chance):
    sampler.setup(POPULARITY)
    drawn = sampler.draw(np.random.default_rng(0), (20_000, 2))
    share = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert share[0] == 0
    assert share[1:] == pytest.approx(chance, abs=0.01)
    assert np.exp(sampler.log_q(np.arange(1, 5))) == pytest.approx(chance, rel=1e-6)


def test_draws_depend_on_the_generator_only():
    sampler = PopularityNegatives(4)
    sampler.setup(POPULARITY)
    one, other = (sampler.draw(np.random.default_rng(7), (50,)) for _ in range(2))
    assert (one == other).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformNegatives(0), "num must be above 0"),
        (lambda: PopularityNegatives(1, alpha=-1.0), "alpha must not be negative"),
        (lambda: FullCatalogue(max_items=3).setup(POPULARITY), "at most 3 items"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
