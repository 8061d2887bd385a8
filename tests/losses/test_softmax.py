"""Full and sampled softmax against torch's cross-entropy and each other."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from lightning_mvrec.functional import Repeats
from lightning_mvrec.losses import FullSoftmaxLoss, SampledSoftmaxLoss
from tests.losses.inputs import both_layouts, make_input


@pytest.mark.parametrize("chunk_size", [1, 7, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_full_softmax_and_its_gradients_equal_cross_entropy(chunk_size, temperature):
    inputs = make_input(rows=30, items=40, dim=8)
    loss = FullSoftmaxLoss(temperature, chunk_size)(inputs)
    (3 * loss).backward()
    grads = inputs.user_RD.grad.clone(), inputs.item_MD.grad.clone()
    inputs.user_RD.grad = inputs.item_MD.grad = None
    logits = inputs.user_RD @ inputs.item_MD[1:].T / temperature
    each = functional.cross_entropy(logits, inputs.target_R - 1, reduction="none")
    expected = (inputs.weight_R * each).sum() / 3.0
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, (inputs.user_RD.grad, inputs.item_MD.grad), rtol=1e-4, atol=1e-5)
    assert (grads[1][0] == 0).all(), "the unknown item must not be trained"


def test_full_softmax_never_scores_the_unknown_item():
    inputs = make_input()
    before = FullSoftmaxLoss()(inputs)
    with torch.no_grad():
        inputs.item_MD[0] = 1e6
    assert torch.equal(FullSoftmaxLoss()(inputs), before)


def test_full_softmax_without_gradients_gives_the_same_value():
    inputs = make_input()
    with torch.no_grad():
        value = FullSoftmaxLoss(chunk_size=4)(inputs)
    assert not value.requires_grad
    torch.testing.assert_close(value, FullSoftmaxLoss(chunk_size=4)(inputs).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", ["user_RD", "item_MD"])
def test_full_softmax_trains_one_side_where_the_other_is_frozen(frozen):
    inputs = make_input()
    getattr(inputs, frozen).requires_grad_(False)
    FullSoftmaxLoss()(inputs).backward()
    assert getattr(inputs, frozen).grad is None
    free = inputs.item_MD if frozen == "user_RD" else inputs.user_RD
    assert (free.grad != 0).any()


def test_full_softmax_keeps_no_logits():
    inputs = make_input(rows=64, items=5000, dim=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        FullSoftmaxLoss()(inputs)
    assert max(kept) <= 5000 * 4


def test_full_softmax_is_exact_where_the_targets_share_is_too_small_for_a_float():
    inputs = make_input(rows=5, items=9, dim=4)
    with torch.no_grad():
        inputs.user_RD.mul_(200)
    logits = inputs.user_RD @ inputs.item_MD[1:].T
    assert logits.softmax(1).gather(1, inputs.target_R[:, None] - 1).min() == 0
    each = functional.cross_entropy(logits, inputs.target_R - 1, reduction="none")
    torch.testing.assert_close(FullSoftmaxLoss(chunk_size=2)(inputs), (inputs.weight_R * each).sum() / 3.0)


def test_full_softmax_in_half_precision_stays_close():
    inputs = make_input(rows=30, items=40, dim=8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = FullSoftmaxLoss()(replace(inputs, user_RD=inputs.user_RD.bfloat16()))
    loss.backward()
    assert loss.dtype == torch.float32
    assert inputs.user_RD.grad.isfinite().all()
    torch.testing.assert_close(loss, FullSoftmaxLoss()(inputs), rtol=0.02, atol=0.02)


def test_full_softmax_without_the_catalogue_is_refused_naming_the_option():
    with pytest.raises(ValueError, match="set `catalogue: true` in the data module"):
        FullSoftmaxLoss()(make_input(catalogue=False))


@pytest.mark.parametrize("negatives", [5, (6, 5)])
@pytest.mark.parametrize("correct_target", [False, True])
def test_sampled_softmax_equals_a_naive_loop(negatives, correct_target):
    inputs = make_input(negatives=negatives, log_q_R=torch.linspace(-3, -1, 6))
    negative_RN, log_q_RN = both_layouts(inputs)
    total = 0.0
    for row, target in enumerate(inputs.target_R.tolist()):
        user = inputs.user_RD[row]
        own = (user @ inputs.item_MD[target]).item() / 0.5
        if correct_target:
            own -= math.log(5) + inputs.log_q_R[row].item()
        partition = math.exp(own)
        for item, log_q in zip(negative_RN[row].tolist(), log_q_RN[row].tolist(), strict=True):
            if item != target:
                partition += math.exp((user @ inputs.item_MD[item]).item() / 0.5) / (5 * math.exp(log_q))
        total += inputs.weight_R[row].item() * (math.log(partition) - own)
    assert (negative_RN == inputs.target_R[:, None]).any(), "the case of a negative that is the target must occur"
    loss = SampledSoftmaxLoss(temperature=0.5, correct_target=correct_target)(inputs)
    assert loss.item() == pytest.approx(total / 3.0, rel=1e-5)


def test_sampled_softmax_of_skewed_draws_approaches_the_full_softmax():
    inputs = make_input(rows=6, items=9)
    generator = torch.Generator().manual_seed(0)
    popularity_M = torch.tensor([0, 50, 20, 10, 8, 5, 4, 2, 1.0])
    log_q_M = (popularity_M / popularity_M.sum()).log()
    negative = torch.multinomial(popularity_M, 200_000, replacement=True, generator=generator)
    drawn = replace(inputs, negative=negative, log_q_negative=log_q_M[negative])
    full = FullSoftmaxLoss()(inputs).item()
    assert SampledSoftmaxLoss()(drawn).item() == pytest.approx(full, rel=0.01)
    assert SampledSoftmaxLoss(correct=False)(drawn).item() != pytest.approx(full, rel=0.1)


def test_sampled_softmax_over_every_other_item_is_the_full_softmax():
    inputs = make_input(negatives=None)
    everything = torch.arange(1, 9)
    uncorrected = SampledSoftmaxLoss(correct=False)(replace(inputs, negative=everything))
    torch.testing.assert_close(uncorrected, FullSoftmaxLoss()(inputs))
    # Every item once is what 8 draws of probability 1/8 amount to.
    corrected = replace(inputs, negative=everything, log_q_negative=torch.full((8,), math.log(1 / 8)))
    torch.testing.assert_close(SampledSoftmaxLoss()(corrected), FullSoftmaxLoss()(inputs))


@pytest.mark.parametrize(("correct_target", "of_what"), [(False, "negatives"), (True, "targets")])
def test_sampled_softmax_without_log_probabilities_is_refused(correct_target, of_what):
    inputs = make_input(negatives=5)
    if not correct_target:
        inputs.log_q_negative = None
    with pytest.raises(ValueError, match=f"needs the log-probabilities of the {of_what}"):
        SampledSoftmaxLoss(correct_target=correct_target)(inputs)


@pytest.mark.parametrize("loss", [FullSoftmaxLoss, SampledSoftmaxLoss])
def test_a_temperature_of_nothing_is_refused(loss):
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        loss(temperature=0)


def test_contradicting_corrections_are_refused():
    with pytest.raises(ValueError, match="correct_target must be False where correct is False"):
        SampledSoftmaxLoss(correct=False, correct_target=True)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk_size must be at least 1 row, got 0"):
        FullSoftmaxLoss(chunk_size=0)


def with_repeats(inputs):
    """A logit for two items of row 0 and one, its target, of row 2; returns the inputs and the dense logits."""
    logit_S = torch.randn(3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    other = 1 if int(inputs.target_R[0]) != 1 else 2
    item_S = torch.stack([torch.tensor(other), inputs.target_R[0], inputs.target_R[2]])
    lengths_R = torch.zeros_like(inputs.target_R)
    lengths_R[0], lengths_R[2] = 2, 1
    inputs = replace(inputs, repeats=Repeats(item_S, lengths_R, logit_S))
    extra = torch.full((len(lengths_R), inputs.item_MD.shape[0]), -torch.inf)
    return inputs, extra.index_put((inputs.repeats.row_S, item_S), logit_S)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_full_softmax_with_repeats_equals_cross_entropy_of_the_joint_scores(chunk_size):
    inputs, extra_RM = with_repeats(make_input())
    wanted = (inputs.user_RD, inputs.item_MD, inputs.repeats.logit_S)
    loss = FullSoftmaxLoss(chunk_size=chunk_size)(inputs)
    grads = torch.autograd.grad(3 * loss, wanted)
    logits = torch.logaddexp(inputs.user_RD @ inputs.item_MD.T, extra_RM)[:, 1:]
    each = functional.cross_entropy(logits, inputs.target_R - 1, reduction="none")
    expected = (inputs.weight_R * each).sum() / 3.0
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(3 * expected, wanted), rtol=1e-4, atol=1e-5)


def test_sampled_softmax_with_repeats_approaches_the_full_one():
    items = 9
    inputs, _ = with_repeats(make_input(items=items))
    every = torch.arange(1, items)
    log_q = torch.full(every.shape, -math.log(items - 1))
    sampled = SampledSoftmaxLoss()(replace(inputs, negative=every, log_q_negative=log_q))
    torch.testing.assert_close(sampled, FullSoftmaxLoss()(inputs))


@pytest.mark.parametrize("loss", [FullSoftmaxLoss(0.5), SampledSoftmaxLoss(0.5, correct=False)])
def test_a_loss_with_a_temperature_of_its_own_is_refused_beside_repeats(loss):
    inputs, _ = with_repeats(make_input(negatives=4))
    with pytest.raises(ValueError, match="give the model the temperature"):
        loss(inputs)


def test_a_repeat_term_trains_beside_frozen_vectors():
    inputs, _ = with_repeats(make_input())
    frozen = replace(inputs, user_RD=inputs.user_RD.detach(), item_MD=inputs.item_MD.detach())
    wanted = torch.autograd.grad(FullSoftmaxLoss()(inputs), inputs.repeats.logit_S)
    torch.testing.assert_close(torch.autograd.grad(FullSoftmaxLoss()(frozen), inputs.repeats.logit_S), wanted)
