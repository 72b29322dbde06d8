"""The portraits in hand: Adam's step and its rate, who leaves when and with what, by hand."""

import math

import pytest
import torch

from stylepairs.datagen.reconstruction.in_hand import InHand, Job, Kept, Verdict, waits
from stylepairs.datagen.reconstruction.settings import OptimiserSettings

SETTINGS = OptimiserSettings(
    steps=4, decay_steps=3, warmup_steps=2, learning_rate=0.1, noise_learning_rate=0.0, momentum=0.5, batch=2
)
WITH_NOISE = SETTINGS.model_copy(update={"noise_learning_rate": 0.2})
# Of the learning rate: two steps to warm up, four in all at most, then half a cosine over three.
RATES = [0.5, 1.0, 1.0, 1.0, 0.75, 0.25, 0.0]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def job(seed=0, **changes):
    return Job(drawn(seed, 3, 2), [drawn(seed + 1, 4, 4)], {"goal": drawn(seed + 2, 3)}, **changes)


def in_hand(first=None, settings=SETTINGS, multiplier_rate=0.0, pause_at=None):
    return InHand(first or job(), settings, multiplier_rate, pause_at)


def verdict(loss=(0.0, 0.0), met=(False, False), violation=(0.0, 0.0)):
    loss = torch.tensor(loss)
    return Verdict(loss, torch.tensor(met), torch.tensor(violation), {"error": loss + 1})


def still(hand):
    return [torch.zeros_like(x) for x in hand.state.moving(hand.settings)]


def steps(hand, count, after_step=None, **given):
    for _ in range(count):
        hand.advance(verdict(**given), still(hand), after_step)


def test_each_portrait_takes_adams_steps_at_its_own_rate():
    """Adam of the paper, in double precision. The second place decays from its second step on; its gradients of 1e-8
    show epsilon."""
    hand = in_hand()
    hand.decay_from[1] = 2.0
    rates = torch.tensor([RATES, [0.5, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0]], dtype=torch.float64)
    wanted, first, second = hand.state.u.detach().double(), 0.0, 0.0
    for step in range(1, len(RATES) + 1):
        gradient = drawn(step, 2, 3, 2) * torch.tensor([1.0, 1e-8]).view(2, 1, 1)
        hand.advance(verdict(), [gradient], None)
        first = 0.5 * first + 0.5 * gradient.double()
        second = 0.99 * second + 0.01 * gradient.double() ** 2
        change = first / (1 - 0.5**step) / ((second / (1 - 0.99**step)) ** 0.5 + 1e-8)
        wanted = wanted - 0.1 * rates[:, step - 1].view(2, 1, 1) * change
        torch.testing.assert_close(hand.state.u.detach().double(), wanted, atol=2e-6, rtol=1e-5)


def test_a_portrait_that_has_left_moves_no_more():
    hand = in_hand()
    for step in range(12):
        hand.advance(verdict(), [drawn(step, 2, 3, 2)], None)
        if step == len(RATES) - 1:
            assert hand.left.all()
            ended = hand.state.u.detach().clone()
    assert torch.equal(hand.state.u, ended)


def test_noise_maps_move_at_their_own_rate_and_are_normalised_each_by_itself():
    """Adam's first step is its rate along the gradient's sign, warmed up by half: 0.05 and 0.1."""
    hand = in_hand(settings=WITH_NOISE)
    hand.put(1, job(5))
    with torch.no_grad():
        hand.state.noise[0] *= 0.3
    u, noise = hand.state.u.detach().clone(), hand.state.noise[0].detach().clone()
    gradients = [drawn(7, 2, 3, 2), drawn(8, 2, 1, 4, 4)]
    hand.advance(verdict(), gradients, None)
    torch.testing.assert_close(hand.state.u.detach(), u - 0.05 * gradients[0].sign())
    for made, start, gradient in zip(hand.state.noise[0], noise, gradients[1], strict=True):
        moved = start - 0.1 * gradient.sign()
        moved = (moved - moved.mean()) / (moved - moved.mean()).square().mean().sqrt()
        torch.testing.assert_close(made.detach(), moved, atol=1e-5, rtol=1e-5)


def test_a_flat_noise_map_stays_finite():
    hand = in_hand(Job(drawn(0, 3, 2), [torch.ones(4, 4)], {}), WITH_NOISE)
    steps(hand, 1)
    assert hand.state.noise[0].detach().abs().max() == 0


def test_frozen_noise_keeps_its_bits():
    hand = in_hand()
    assert hand.state.moving(SETTINGS) == [hand.state.u]
    hand.advance(verdict(), [drawn(1, 2, 3, 2)], None)
    assert torch.equal(hand.state.noise[0][1, 0], job().noise[0])


def test_the_multiplier_grows_by_the_violation_within_one_and_stays_between_a_tenth_and_a_hundred():
    hand = in_hand(multiplier_rate=0.5)
    for violation in ((2.0, -3.0), (0.5, -0.25)):
        hand.state.multiplier.fill_(2.0)
        steps(hand, 1, violation=violation)
        expected = [2 * math.exp(0.5 * min(max(x, -1), 1)) for x in violation]
        assert hand.state.multiplier.tolist() == pytest.approx(expected)
    hand.state.multiplier.copy_(torch.tensor([99.0, 0.11]))
    steps(hand, 1, violation=(1.0, -1.0))
    assert hand.state.multiplier.tolist() == pytest.approx([100.0, 0.1])


@pytest.mark.parametrize("broken", ["loss", "latent", "noise"])
def test_one_that_is_not_finite_leaves_at_once_with_the_last_finite_state(broken):
    hand = in_hand(settings=WITH_NOISE, multiplier_rate=0.5)
    gradients = [drawn(1, 2, 3, 2), drawn(2, 2, 1, 4, 4)]
    hand.advance(verdict(), gradients, None)  # it has momentum
    start, noise = hand.state.u[1].detach().clone(), hand.state.noise[0][1, 0].detach().clone()
    if broken != "loss":
        gradients[broken == "noise"][1].view(-1)[3] = torch.nan
    loss = (1.0, torch.inf if broken == "loss" else 2.0)
    hand.advance(verdict(loss, violation=(1.0, 1.0)), gradients, None)
    assert hand.left.tolist() == [False, True]
    outcome = hand.kept.outcome(1)
    assert (outcome.steps, outcome.figures["finite"], outcome.figures["multiplier"]) == (2, 0.0, 1.0)
    assert torch.equal(outcome.u, start)
    assert torch.equal(outcome.noise[0], noise)
    assert not torch.equal(hand.state.u[0], start)
    hand.advance(verdict(), gradients, None)  # later steps change nothing of it
    assert hand.kept.outcome(1).steps == 2


def test_a_portrait_leaves_when_its_steps_and_their_decay_are_done():
    hand = in_hand(multiplier_rate=0.0)
    hand.put(1, job(1, step=2, multiplier=3.0))
    steps(hand, 4)
    assert (hand.left.tolist(), hand.kept) == ([False, False], None)
    steps(hand, 1, loss=(1.0, 2.0))
    assert hand.left.tolist() == [False, True]
    steps(hand, 2, loss=(5.0, 6.0))
    assert hand.left.tolist() == [True, True]
    first, second = (hand.kept.outcome(place) for place in (0, 1))
    assert (first.steps, first.figures) == (7, {"error": 6.0, "finite": 1.0, "multiplier": 1.0})
    assert (second.steps, second.figures) == (7, {"error": 3.0, "finite": 1.0, "multiplier": 3.0})
    assert torch.equal(second.u, job(1).u)
    assert torch.equal(second.noise[0], job(1).noise[0])
    assert first.moments is second.moments is None


def test_one_that_is_met_after_its_warm_up_leaves_when_the_decay_is_done():
    hand = in_hand()
    steps(hand, 2, met=(True, False))  # within the warm-up it does not count
    assert hand.decay_from.tolist() == [4, 4]
    steps(hand, 1, met=(True, False))
    assert hand.decay_from.tolist() == [3, 4]
    steps(hand, 2, met=(True, False))  # nor does being met again
    assert (hand.decay_from.tolist(), hand.left.tolist()) == ([3, 4], [False, False])
    steps(hand, 1, met=(False, True))  # nor being met after the last step
    assert (hand.decay_from.tolist(), hand.left.tolist()) == ([3, 4], [True, False])


def test_one_that_pauses_leaves_at_that_step_met_or_not_and_goes_on_to_the_bit():
    gradients = [[drawn(step, 2, 3, 2), drawn(10 + step, 2, 1, 4, 4)] for step in range(5)]
    whole, first = (in_hand(settings=WITH_NOISE, pause_at=pause_at) for pause_at in (5, 3))
    for gradient in gradients:
        whole.advance(verdict(), gradient, None)
    for step, gradient in enumerate(gradients[:3]):
        assert (first.left.any(), first.kept) == (False, None)
        first.advance(verdict(met=(True, step > 1)), gradient, None)
    assert first.left.all()
    assert first.decay_from.tolist() == [4, 4]
    outcome = first.kept.outcome(1)
    going_on = Job(outcome.u, outcome.noise, {}, step=outcome.steps, moments=outcome.moments)
    second = in_hand(going_on, WITH_NOISE, pause_at=5)
    entered = in_hand(settings=WITH_NOISE, pause_at=5)
    entered.state.targets.clear()
    entered.put(1, going_on)
    for hand in (second, entered):
        for gradient in gradients[3:]:
            hand.advance(verdict(), gradient, None)
        assert torch.equal(hand.state.u[1], whole.state.u[1])
        assert torch.equal(hand.state.noise[0][1], whole.state.noise[0][1])
        assert hand.left.tolist() == [hand is second, True]


def test_a_job_that_enters_finds_nothing_of_the_one_before():
    hand = in_hand(settings=WITH_NOISE)
    for step in range(7):
        hand.advance(verdict(), [drawn(step, 2, 3, 2), drawn(step, 2, 1, 4, 4)], None)
    hand.put(1, job(4))
    fresh = in_hand(job(4), WITH_NOISE)
    state = hand.state
    for used, new in zip([state.u, *state.noise, state.targets["goal"], state.step, state.multiplier, hand.decay_from,
                          hand.left, *hand.moments[0], *hand.moments[1]],
                         [fresh.state.u, *fresh.state.noise, fresh.state.targets["goal"], torch.zeros(2),
                          torch.ones(2), torch.full((2,), 4.0), torch.zeros(2, dtype=torch.bool),
                          *(torch.zeros_like(x) for pair in fresh.moments for x in pair)], strict=True):  # fmt: skip
        assert torch.equal(used[1], new[1])
    assert hand.left.tolist() == [True, False]


def test_every_place_begins_with_the_first_job():
    moments = [(drawn(7, 3, 2), drawn(8, 3, 2).square())]
    first = job(step=3, multiplier=2.0, moments=moments)
    hand = in_hand(first)
    for place in range(2):
        assert torch.equal(hand.state.u[place], first.u)
        assert torch.equal(hand.state.noise[0][place, 0], first.noise[0])
        assert torch.equal(hand.state.targets["goal"][place], first.targets["goal"])
        assert torch.equal(hand.moments[0][0][place], moments[0][0])
        assert torch.equal(hand.moments[0][1][place], moments[0][1])
    assert (hand.state.step.tolist(), hand.state.multiplier.tolist()) == ([3, 3], [2, 2])


def test_what_follows_a_step_sees_where_it_came_to():
    hand, seen = in_hand(), []

    def after_step(state):
        seen.append((state.step.tolist(), state.u.detach().clone()))
        state.u.fill_(7.0)

    hand.advance(verdict(), [torch.ones(2, 3, 2)], after_step)
    assert [step for step, _ in seen] == [[1, 1]]
    torch.testing.assert_close(seen[0][1][0], job().u - 0.05)
    assert (hand.state.u == 7).all()


def test_rows_share_the_batchs_memory_but_not_its_gradients():
    hand = in_hand()
    hand.put(1, job(5, step=2, multiplier=4.0))
    part = hand.state.rows(slice(1, 2))
    for mine, whole in ((part.u, hand.state.u), (part.noise[0], hand.state.noise[0])):
        assert mine.data_ptr() == whole[1].data_ptr()
        assert mine.is_leaf
        assert mine.requires_grad
    assert torch.equal(part.targets["goal"], job(5).targets["goal"][None])
    assert (part.step.tolist(), part.multiplier.tolist()) == ([2], [4])


def test_targets_are_made_without_gradients():
    made = []

    def targets():
        made.append(torch.is_grad_enabled())
        return {"goal": torch.ones(3)}

    assert Job(torch.zeros(3, 2), [], targets).made_targets()["goal"].tolist() == [1, 1, 1]
    assert made == [False]


def test_where_asking_waits_all_is_kept_from_the_first_step_on(monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.reconstruction.in_hand.waits", lambda device: True)
    hand = in_hand(pause_at=3)
    steps(hand, 1)
    assert not any(tensor.any() for tensor in hand.kept.tensors())
    steps(hand, 1, loss=(0.0, torch.nan))
    assert [hand.kept.step.tolist(), hand.left.tolist()] == [[0, 2], [False, True]]
    assert [waits(torch.device(name)) for name in ("cpu", "cuda", "meta")] == [False, True, True]


def test_zeros_of_what_is_kept_are_as_large_and_all_zero():
    hand = in_hand(settings=WITH_NOISE, pause_at=1)
    steps(hand, 1)
    zeros = Kept.zeros(hand.kept).tensors()
    assert [x.shape for x in zeros] == [x.shape for x in hand.kept.tensors()]
    assert not any(x.any() for x in zeros)
