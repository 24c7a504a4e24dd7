"""Schedules: inverses, derivatives, the closed forms of the literature."""

import copy
import math
import pickle

import pytest
import torch

import fastlik
from fastlik.schedule import from_dict, named, remembered


def times(schedule, n=64):
    inside = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]
    return schedule.t_min + inside * (schedule.t_max - schedule.t_min)


def test_log_snr_is_that_of_alpha_and_sigma(schedule):
    t = times(schedule)
    expected = 2 * (schedule.alpha(t).log() - schedule.sigma(t).log())
    torch.testing.assert_close(schedule.log_snr(t), expected, rtol=1e-12, atol=1e-12)


def test_inverse_is_closed_to_rounding(schedule):
    t = times(schedule)
    torch.testing.assert_close(schedule.t(schedule.log_snr(t)), t, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(schedule.t_at_angle(schedule.angle(t)), t, rtol=1e-10, atol=1e-12)


def test_rates_are_the_derivatives(schedule):
    t = times(schedule)
    step = 1e-6 * (schedule.t_max - schedule.t_min)
    if isinstance(schedule, fastlik.DiscreteVP):
        t = t.floor() + 0.5  # the table's log-SNR has kinks at the indices
    for value, rate in zip((schedule.alpha, schedule.sigma), schedule.rates(t), strict=True):
        difference = (value(t + step) - value(t - step)) / (2 * step)
        torch.testing.assert_close(rate, difference, rtol=1e-5, atol=1e-8 * float(difference.abs().max()))


def test_the_data_end_has_less_noise(schedule):
    assert schedule.angle(schedule.t_data) < schedule.angle(schedule.t_prior)


def test_dictionary_round_trip(schedule):
    assert from_dict(schedule.to_dict()) == schedule


def test_float32_and_shapes(schedule):
    t = times(schedule, 6).float().reshape(2, 3)
    for value in (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)):
        assert value.shape == (2, 3) and value.dtype == torch.float32
    assert schedule.alpha(float(t[0, 0])).dtype == torch.float64


def test_diffusion_coefficients_of_the_literature():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    vp, sub_vp, ve = fastlik.VP(), fastlik.SubVP(), fastlik.VE()
    torch.testing.assert_close(vp.diffusion_squared(t), vp.beta(t))
    torch.testing.assert_close(
        sub_vp.diffusion_squared(t), sub_vp.beta(t) * (1 - torch.exp(-2 * sub_vp.integral_beta(t)))
    )
    torch.testing.assert_close(ve.diffusion_squared(t), 2 * math.log(5000) * ve.sigma(t) ** 2)


def test_small_times_keep_their_precision():
    """1 - exp(-B) by subtraction would lose six digits at t = 1e-10."""
    vp = fastlik.VP()
    t = torch.tensor([1e-10], dtype=torch.float64)
    torch.testing.assert_close(vp.sigma(t), (0.1 * t).sqrt(), rtol=1e-8, atol=0)
    torch.testing.assert_close(vp.t(vp.log_snr(t)), t, rtol=1e-12, atol=0)


def test_discrete_table_is_met_at_the_indices():
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 50, dtype=torch.float64), 0)
    schedule = fastlik.DiscreteVP(table)
    torch.testing.assert_close(schedule.alpha(torch.arange(50.0).double()) ** 2, table)
    assert schedule.t_max == 49


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastlik.LogSNR(path="curved"), "'vp' or 'straight'"),
        (lambda: fastlik.RectifiedFlow(data_at=2), "0 or 1"),
        (lambda: fastlik.DiscreteVP([0.5]), "two or more"),
        (lambda: fastlik.DiscreteVP([0.5, 0.6]), "strictly decreasing"),
        (lambda: named("vpp"), "valid names are vp, subvp"),
    ],
)
def test_bad_schedules_say_what_is_valid(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_remembered_is_of_a_schedule_that_is_frozen():
    calls = []

    @remembered
    def rate(schedule, factor):
        calls.append(factor)
        return factor * schedule.beta_min

    one, two = fastlik.VP(), fastlik.VP(0.2)
    found = [rate(one, 3.0), rate(two, 3.0), rate(one, 3.0), rate(one, 4.0)]
    assert found == pytest.approx([0.3, 0.6, 0.3, 0.4])
    assert calls == [3.0, 3.0, 4.0]
    for copied in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert copied == one and rate(copied, 3.0) == rate(one, 3.0) and len(calls) == 4
        calls.pop()


def test_a_schedule_that_is_learned_is_asked_again():
    """Its likelihood follows its parameters, by a kernel too."""

    class Learned(fastlik.VP):
        gain = 1.0

        def integral_beta(self, t):
            return self.gain * super().integral_beta(t)

        def _invert_integral(self, integral):
            return super()._invert_integral(integral / self.gain)

    torch.manual_seed(0)
    net = fastlik.nn.MLP(2, width=16, depth=2)
    torch.nn.init.normal_(net.out.weight, std=0.2)
    x = torch.tensor([[0.3, -0.2]])
    schedule = Learned()
    model = fastlik.wrap(net, schedule, "noise")
    fastlik.ode_nll(model, x)
    Learned.gain = 1.5
    again = fastlik.ode_nll(model, x)
    fresh = fastlik.ode_nll(fastlik.wrap(net, Learned(), "noise"), x)
    assert torch.equal(again.nats, fresh.nats)
