"""Networks and schedulers of diffusers: the library's own arithmetic, and exact likelihoods."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

import fastlik
from fastlik import zoo
from fastlik.testing import GaussianMixture

DOUBLE = torch.float64
PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip
    return net.double().eval()


def image(rows=2):
    return torch.randn(rows, 1, 8, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


class Exact(nn.Module):
    """The exact prediction of a mixture, in diffusers' manner of being called."""

    def __init__(self, schedule, predicts, scale=1.0):
        super().__init__()
        self.exact, self.scale = GaussianMixture.ring().model(schedule, predicts=predicts).net, scale

    def forward(self, sample, timestep):
        return SimpleNamespace(sample=self.exact(sample, timestep / self.scale))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_denoised_is_what_the_scheduler_makes_of_the_output(unet, kind):
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    model, x, t = zoo.from_diffusers(unet, scheduler), image(), 300
    with torch.no_grad():
        output = unet(x, t).sample
        expected = scheduler.step(output, t, x).pred_original_sample
        actual = model.denoised(x, float(t))
    assert model.predicts == PREDICTIONS[kind]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # its table is float32


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_denoised_is_edm_s(unet, kind):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=kind)
    model, x, sigma = zoo.from_diffusers(unet, scheduler), image(), torch.tensor(0.7, dtype=DOUBLE)
    with torch.no_grad():
        output = unet(scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)).sample
        expected = scheduler.precondition_outputs(x, output, sigma)
        actual = model.denoised(x, float(sigma))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_velocity_is_a_step_of_flow_matching(unet):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(20)
    model, x, t = zoo.from_diffusers(unet, scheduler), image(), scheduler.timesteps[4]
    with torch.no_grad():
        step = scheduler.step(unet(x, t.double()).sample, t, x).prev_sample - x
        expected = step / float(scheduler.sigmas[5] - scheduler.sigmas[4])
        actual = model.velocity(x, float(t) / 1000)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)  # its state is float32


@pytest.mark.parametrize(
    "scheduler, schedule, predicts, scale",
    [
        (diffusers.DDPMScheduler(), "table", "noise", 1.0),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"), "table", "v", 1.0),
        (diffusers.FlowMatchEulerDiscreteScheduler(), fastlik.RectifiedFlow(), "velocity", 1000.0),
    ],
    ids=["DDPM", "DPMSolver, v", "flow matching"],
)
def test_exact_networks_have_the_data_s_likelihood(scheduler, schedule, predicts, scale):
    if schedule == "table":
        schedule = fastlik.DiscreteVP(scheduler.alphas_cumprod.double())
    data = GaussianMixture.ring()
    model = zoo.from_diffusers(
        Exact(schedule, predicts, scale), scheduler, moments=(data.mean, data.covariance)
    )
    x = data.sample(16, seed=2)
    start = float(schedule.sigma(schedule.t_data))
    expected = data.log_density(x, float(schedule.alpha(schedule.t_data)), start)
    result = fastlik.ode_nll(model, x, tolerance=1e-5)
    assert bool(result.converged.all())
    torch.testing.assert_close(-result.nats, expected, rtol=0, atol=1e-3)


def test_pipelines_bring_their_own_scheduler(unet):
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    model = zoo.from_diffusers(pipeline)
    assert model.net is unet and isinstance(model.schedule, fastlik.DiscreteVP)
    result = fastlik.ode_nll(model, image(), tolerance=1e-2)
    assert bool(result.nats.isfinite().all())


def test_the_learned_variance_is_left_out():
    class Both(nn.Module):
        def forward(self, x, t):
            return SimpleNamespace(sample=torch.cat((x, torch.full_like(x, torch.nan)), 1))

    model = zoo.from_diffusers(Both(), diffusers.DDPMScheduler())
    torch.testing.assert_close(model.noise(image(), 5.0), image())


def test_a_table_down_to_zero_snr_ends_before_it(unet):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert float(scheduler.alphas_cumprod[-1]) < 1e-9
    schedule = zoo.from_diffusers(unet, scheduler).schedule
    assert float(schedule.alpha(schedule.t_max)) > 0


def test_what_is_not_known_says_what_to_do(unet):
    with pytest.raises(TypeError, match="fastlik.wrap"):
        zoo.from_diffusers(unet, diffusers.IPNDMScheduler())
    with pytest.raises(TypeError, match=r"from_diffusers\(net, scheduler\)"):
        zoo.from_diffusers(unet)
    scheduler = diffusers.DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="epsilon, sample, v_prediction"):
        zoo.from_diffusers(unet, scheduler)
