"""The flow of learned dequantisation: invertible, with an exact density, uniform before training."""

import json

import pytest
import torch

from fastlik.nn import FlowDequantiser

EVENTS = [(1,), (5,), (1, 4, 4), (3, 2, 3)]


def flow(event, **options):
    """One with random weights, in float64, well enough conditioned to be inverted."""
    scale = 0.3 if len(event) == 1 else 0.1
    torch.manual_seed(0)
    module = FlowDequantiser(event, width=16, bins=5, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def inputs(event, rows=3):
    generator = torch.Generator().manual_seed(1)
    centres, noise = torch.rand(2, rows, *event, generator=generator, dtype=torch.float64)
    return 2 * centres - 1, noise


@pytest.mark.parametrize("event", EVENTS)
def test_untrained_it_is_uniform(event):
    centres, noise = inputs(event)
    u, log_q = FlowDequantiser(event).double()(centres, noise)
    torch.testing.assert_close(u, noise, rtol=0, atol=1e-13)
    torch.testing.assert_close(log_q, torch.zeros(3).double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("event", EVENTS)
def test_the_density_is_that_of_autograds_jacobian(event):
    module, (centres, noise) = flow(event), inputs(event)
    u, log_q = module(centres, noise)
    assert (u - noise).abs().max() > 0.05 and ((u > 0) & (u < 1)).all()
    size = noise[0].numel()
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, row=row: module(centres[row : row + 1], v)[0], noise[row : row + 1]
        )
        sign, log_det = torch.linalg.slogdet(jacobian.reshape(size, size))
        assert sign > 0
        torch.testing.assert_close(log_q[row], -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("event", EVENTS)
def test_the_noise_can_be_found_again(event):
    """Layer by layer, by bisection: each is increasing in what it moves, given what stays."""
    module, (centres, noise) = flow(event), inputs(event)
    u = module(centres, noise)[0].detach()
    with torch.no_grad():
        for coupling in reversed(module.couplings):
            low, high = torch.zeros_like(u), torch.ones_like(u)
            for _ in range(55):
                middle = (low + high) / 2
                below = coupling(centres, torch.where(coupling.moves, middle, u))[0] < u
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            u = torch.where(coupling.moves, middle, u)
    torch.testing.assert_close(u, noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize("event", EVENTS[1:])
def test_every_coordinate_depends_on_the_levels_and_on_the_others(event):
    module, (centres, noise) = flow(event), inputs(event, 1)
    by_centres = torch.autograd.functional.jacobian(lambda c: module(c, noise)[0], centres)
    by_noise = torch.autograd.functional.jacobian(lambda v: module(centres, v)[0], noise)
    size = noise.numel()
    assert (by_centres.reshape(size, size).abs().sum(1) > 1e-6).all()
    assert ((by_noise.reshape(size, size).abs() > 1e-9).sum(1) > 1).all()


def test_the_range_of_the_data_is_its_unit():
    centres, noise = inputs((5,))
    here, there = flow((5,)), flow((5,), data_range=(0.0, 10.0))
    torch.testing.assert_close(there(5 * (centres + 1), noise), here(centres, noise))


def test_it_is_rebuilt_from_its_configuration():
    module = FlowDequantiser((2,), layers=3, width=7, bins=4, data_range=(0, 2))
    again = FlowDequantiser(**json.loads(json.dumps(module.config)))
    assert again.config == module.config
    again.load_state_dict(module.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"), [(((2, 3),), r"\(d,\) or \(C, H, W\)"), (((2,), 0), ">= 1"), (((0,),), ">= 1")]
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowDequantiser(*arguments)


def test_another_shape():
    with pytest.raises(ValueError, match=r"centres of shape \(B, 2\), got \(4, 3\)"):
        FlowDequantiser((2,))(torch.zeros(4, 3), torch.zeros(4, 3))
