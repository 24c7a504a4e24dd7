"""Second and third order against the definitions of Lu et al. 2022, by nested float64 autograd."""

import itertools
import math

import pytest
import torch
from torch import nn

from fastlik.model import PREDICTIONS, per_row, wrap
from fastlik.nn import MLP, UNet
from fastlik.objectives import (
    Forms,
    choose_forms,
    draw_probes,
    dsm_loss,
    hdsm_loss,
    high_order_errors,
    sample_times,
    weight,
)
from fastlik.schedule import EDM, VE, VP, RectifiedFlow, SubVP
from fastlik.testing import GaussianMixture
from fastlik.training.network import score_model

SECOND = ("full", "trace", "product", "quadratic", "quadratic-pair", "product+quadratic")
EXACT = ("full", "vector-laplacian")
THIRD = (*EXACT, "gradient", "gradient-pair", "laplacian", "laplacian-pair", "mixed", "mixed-pair")
SCHEDULES = [VP(), SubVP(), VE(), EDM(), RectifiedFlow(), RectifiedFlow(data_at=1)]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    return x0, noise, draw_probes(x0, 2), draw_probes(x0, 1)[0]


def smooth_model(schedule, predicts="noise"):
    torch.manual_seed(1)
    net = MLP(3, width=12, depth=2, activation="tanh").double()
    nn.init.normal_(net.out.weight, std=0.5)
    return score_model(net, schedule, predicts)


def definition(model, x0, t, noise, forms, probes, u):
    """(second, third) (B,) straight from the paper, in s and its derivatives, one row at a time."""
    seconds, thirds = [], []
    for b in range(len(x0)):
        alpha, sigma = model.schedule.alpha(t[b]), model.schedule.sigma(t[b])
        x = alpha * x0[b] + sigma * noise[b]

        def s1(x, b=b):
            return model.score(x[None], t[b : b + 1])[0]

        def s2(x, s1=s1):
            return torch.func.jacrev(s1)(x)

        d, identity = x.numel(), torch.eye(3, dtype=x.dtype)
        l1 = (noise[b] + sigma * s1(x)).detach()
        residual = sigma**2 * s2(x) + identity - torch.outer(l1, l1)
        v, l2 = probes[:, b], (sigma**2 * s2(x) + identity).detach()
        quadratic = torch.stack([w @ residual @ w for w in v])
        value = {
            "full": residual.square().sum(),
            "trace": residual.trace() ** 2,
            "product": torch.stack([(residual @ w).square().sum() for w in v]).mean(),
            "quadratic": quadratic.mean() ** 2,
            "quadratic-pair": quadratic[0] * quadratic[1],
        }
        seconds.append(sum(value[name] for name in forms.second) / d**2)

        def target(w, l1=l1, l2=l2):
            return (w @ l1) ** 2 * l1 - (w @ l2 @ w) * l1 - 2 * (w @ l1) * (l2 @ w)

        def gradient(w, x=x, sigma=sigma, s2=s2):
            return sigma**3 * torch.func.jacrev(lambda x: w @ s2(x) @ w)(x)

        def laplacian(w, x=x, sigma=sigma, s2=s2):
            return sigma**3 * torch.func.jacrev(lambda x: s2(x) @ w)(x) @ w

        l3 = (l1 @ l1 - l2.trace()) * l1 - 2 * l2 @ l1
        name, _, pair = (forms.third or "none").removeprefix("vector-").partition("-")
        if forms.third == "full":
            gaps = [sigma**3 * torch.func.jacrev(lambda x, s2=s2: s2(x).trace())(x) + l3]
        elif forms.third == "vector-laplacian":
            gaps = [sum(map(laplacian, identity)) + l3]
        elif name == "laplacian":
            gaps = [laplacian(w) + target(w) for w in v]
        else:
            gaps = [gradient(w) + target(w) for w in v]
        gaps = [(u[b] @ gap)[None] if name == "mixed" else gap for gap in gaps]
        thirds.append((gaps[0] @ gaps[1] if pair else (sum(gaps) / len(gaps)).square().sum()) / d**3)
    return torch.stack(seconds), torch.stack(thirds)


def assert_same_with_gradients(model, mine, expected):
    torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)
    parameters = list(model.parameters())
    weights = torch.linspace(0.5, 1.5, len(mine), dtype=mine.dtype)
    for a, b in zip(
        torch.autograd.grad(weights @ mine, parameters, retain_graph=True, allow_unused=True),
        torch.autograd.grad(weights @ expected, parameters, retain_graph=True, allow_unused=True),
        strict=True,
    ):
        if b is None:  # biases that derivatives do not depend on
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", ["native", "jets", "torch"])
@pytest.mark.parametrize("form", SECOND)
def test_second_order_is_its_definition(form, backend, batch):
    x0, noise, probes, u = batch
    model, t = smooth_model(VP()), torch.linspace(0.05, 0.9, 5, dtype=torch.float64)
    forms = choose_forms(2, form, "auto", 3, 2)
    mine = high_order_errors(model, x0, t, noise, forms=forms, probes=probes, backend=backend)
    expected, _ = definition(model, x0, t, noise, forms, probes, u)
    assert_same_with_gradients(model, mine.second, expected)
    assert mine.third is None


@pytest.mark.parametrize("backend", ["native", "jets", "torch"])
@pytest.mark.parametrize(("second", "form"), [*(("full", form) for form in THIRD), ("product", EXACT[1])])
def test_third_order_is_its_definition(second, form, backend, batch):
    x0, noise, probes, u = batch
    model, t = smooth_model(VP()), torch.linspace(0.05, 0.9, 5, dtype=torch.float64)
    forms = choose_forms(3, second, form, 3, 2)
    mine = high_order_errors(model, x0, t, noise, forms=forms, probes=probes, mixing=u, backend=backend)
    second, third = definition(model, x0, t, noise, forms, probes, u)
    assert_same_with_gradients(model, mine.second, second)
    assert_same_with_gradients(model, mine.third, third)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_prediction_on_every_schedule(schedule, predicts, batch):
    x0, noise, probes, u = batch
    model = smooth_model(schedule, predicts)
    t = sample_times(schedule, "importance", torch.linspace(0.2, 0.8, 5)).t
    forms = choose_forms(3, "product+quadratic", "gradient", 3, 2)
    mine = high_order_errors(model, x0, t, noise, forms=forms, probes=probes)
    second, third = definition(model, x0, t, noise, forms, probes, u)
    torch.testing.assert_close(mine.second, second, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mine.third, third, rtol=1e-6, atol=1e-8)


class Jet(nn.Module):
    """A network with a prescribed value, Jacobian and Hessian at one point."""

    def __init__(self, point, value, jacobian, hessian):
        super().__init__()
        self.point = point
        self.value, self.jacobian, self.hessian = map(nn.Parameter, (value, jacobian, hessian))

    def forward(self, x, time):
        step = x - self.point
        bend = torch.einsum("kij,bi,bj->bk", self.hessian, step, step)
        return self.value + step @ self.jacobian.T + 0.5 * bend


def posterior_nodes(data, x, alpha, sigma, order=8):
    """Quadrature (weights, x_0) of the distribution of x_0 given x_t = x, exact for polynomials of degree
    2 order - 1: that distribution is itself a Gaussian mixture."""
    points, weights = (torch.from_numpy(a) for a in _hermite(order))
    index = torch.tensor(list(itertools.product(range(order), repeat=data.size)))
    grid, mass = points[index], weights[index].prod(1)
    _, responsibility, _, _ = data._components(x[None], alpha, sigma)
    all_weights, all_nodes = [], []
    for k in range(len(data.weights)):
        likelihood = (alpha / sigma) ** 2 * torch.eye(data.size, dtype=torch.float64)
        precision = torch.linalg.inv(data.covariances[k]) + likelihood
        covariance = torch.linalg.inv(precision)
        mean = covariance @ (torch.linalg.solve(data.covariances[k], data.means[k]) + alpha / sigma**2 * x)
        all_nodes.append(mean + grid @ torch.linalg.cholesky(covariance).T)
        all_weights.append(responsibility[0, k] * mass)
    return torch.cat(all_weights), torch.cat(all_nodes)


def _hermite(order):
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(order)
    return points, weights / math.sqrt(2 * math.pi)


def broad_mixture():
    """Three components that overlap, so that no posterior is far narrower than another."""
    covariances = [[[0.5, 0.2], [0.2, 0.3]], [[0.3, 0.0], [0.0, 0.6]], [[0.4, -0.1], [-0.1, 0.2]]]
    return GaussianMixture([0.3, 0.5, 0.2], [[-1.0, 0.3], [0.4, -0.6], [0.8, 0.9]], covariances)


def symmetric(size, seed):
    """A random symmetric third-order tensor."""
    tensor = torch.randn(size, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return sum(tensor.permute(p) for p in itertools.permutations(range(3))) / 6


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=5.0)], ids=str)
def test_fixed_points_with_injected_errors(schedule):
    """F.8: with an error e of the score and E2 of its Jacobian, the expected gradients vanish at
    grad^2 log q + e e' and at grad tr grad^2 log q - |e|^2 e + tr(E2) e + 2 E2 e."""
    torch.manual_seed(0)
    data, t = broad_mixture(), torch.tensor([0.4], dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = data.sample(1, 5)[0] * alpha + 0.3 * sigma
    score, hessian = data.score(x[None], alpha, sigma)[0], data.hessian(x[None], alpha, sigma)[0]
    third = data.laplacian_gradient(x[None], alpha, sigma)[0]
    e = torch.tensor([0.3, -0.2], dtype=torch.float64) / sigma
    weights, x0 = posterior_nodes(data, x, alpha, sigma)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    noise = (x - alpha * x0) / sigma
    times = t.expand(len(x0))

    def expected_gradients(s2, s3_tensor, forms, probes=None):
        """Of the mean errors, in the network's Jacobian and Hessian, with s1 = score + e."""
        net = Jet(x, -sigma * (score + e), -sigma * s2, -sigma * s3_tensor)
        model = wrap(net, schedule, "noise")
        errors = high_order_errors(model, x0, times, noise, forms=forms, probes=probes)
        second = torch.autograd.grad(weights @ errors.second, net.jacobian, retain_graph=True)[0]
        third = torch.autograd.grad(weights @ errors.third, net.hessian)[0]
        return second, third

    error = torch.tensor([[0.2, 0.1], [0.1, -0.3]], dtype=torch.float64) / sigma**2
    wrong_second = hessian + error
    right_second = hessian + torch.outer(e, e)
    right_third = third - e.square().sum() * e + error.trace() * e + 2 * error @ e
    # a symmetric tensor whose trace is the fixed point: sum_i S_kii = right_third_k
    shape = symmetric(2, 1)
    shift = (right_third - shape.diagonal(dim1=1, dim2=2).sum(-1)) / 4  # (d + 2) for the symmetric part
    eye = torch.eye(2, dtype=torch.float64)
    s3 = shape + sum(torch.einsum(pattern, eye, shift) for pattern in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"))
    torch.testing.assert_close(s3.diagonal(dim1=1, dim2=2).sum(-1), right_third)

    for third_form in EXACT:
        forms = choose_forms(3, "full", third_form, 2, 1)
        gradient, _ = expected_gradients(right_second, s3, forms)
        assert gradient.abs().max() < 1e-10
        _, gradient = expected_gradients(wrong_second, s3, forms)
        assert gradient.abs().max() < 1e-10
    trace = choose_forms(3, "trace", "full", 2, 1)
    traceless = torch.tensor([[0.7, 0.2], [0.2, -0.7]], dtype=torch.float64) / sigma**2
    gradient, _ = expected_gradients(right_second + traceless, s3, trace)
    assert gradient.abs().max() < 1e-10
    # and not anywhere else
    gradient, other = expected_gradients(hessian, 1.1 * s3, forms)
    assert gradient.abs().max() > 1e-4 and other.abs().max() > 1e-4

    # for every probe, and so averaged over them, the probe forms of second order have the same fixed point
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    for second, v in itertools.product(("product", "quadratic"), signs):
        forms = choose_forms(3, second, "full", 2, 1)
        gradient, _ = expected_gradients(right_second, s3, forms, v.expand(1, len(x0), 2))
        assert gradient.abs().max() < 1e-10, second


def test_the_third_fixed_point_of_probes_is_the_tensor_contracted_with_them():
    """For every probe v the optimum of every form is the third cumulant contracted with v and v."""
    schedule, data = VP(), broad_mixture()
    t = torch.tensor([0.3], dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = data.sample(1, 7)[0] * alpha
    score, hessian = data.score(x[None], alpha, sigma)[0], data.hessian(x[None], alpha, sigma)[0]
    tensor = torch.func.jacrev(lambda x: data.hessian(x[None], alpha, sigma)[0])(x)
    weights, x0 = posterior_nodes(data, x, alpha, sigma)
    noise, times = (x - alpha * x0) / sigma, t.expand(len(x0))
    net = Jet(x, -sigma * score, -sigma * hessian, -sigma * tensor)
    model = wrap(net, schedule, "noise")
    probes = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(1, len(x0), 2)
    mixing = torch.tensor([1.0, 1.0], dtype=torch.float64).expand(len(x0), 2)
    for form in ("gradient", "laplacian", "mixed", *EXACT):
        forms = Forms(("product",), form)
        errors = high_order_errors(model, x0, times, noise, forms=forms, probes=probes, mixing=mixing)
        gradient = torch.autograd.grad(weights @ errors.third, net.hessian)[0]
        assert gradient.abs().max() < 1e-10, form


def test_pairs_are_unbiased_and_squares_carry_the_probe_variance(batch):
    """Over all sign vectors in 3-D: E pair = exact form; E square = exact form + variance."""
    x0, noise, *_ = batch
    x0, noise = x0[:1], noise[:1]
    model, t = smooth_model(VP()), torch.tensor([0.35], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)

    def errors(second, third, probes, **more):
        forms = choose_forms(3, second, third, 3, len(probes))
        result = high_order_errors(model, x0, t, noise, forms=forms, probes=probes[:, None], **more)
        return torch.cat((result.second, result.third)).detach()

    def mean(second, third, pairs):
        if not pairs:
            return torch.stack([errors(second, third, v[None]) for v in signs]).mean(0)
        couples = itertools.product(signs, signs)
        return torch.stack([errors(second, third, torch.stack(c)) for c in couples]).mean(0)

    exact = errors("trace", "full", signs[:1])
    pair, square = mean("quadratic-pair", "gradient-pair", True), mean("quadratic", "gradient", False)
    torch.testing.assert_close(pair, exact, rtol=1e-9, atol=1e-12)
    assert (square > exact * 1.01).all()
    product = mean("product", "gradient", False)
    full = errors("full", "full", signs[:1])
    assert product[0] == pytest.approx(float(full[0]), rel=1e-10)
    mixed = torch.stack(
        [errors("product", "mixed", v[None], mixing=u[None]) for v in signs for u in signs]
    ).mean(0)
    torch.testing.assert_close(mixed[1], square[1], rtol=1e-9, atol=1e-12)


def test_errors_follow_the_exact_model_of_a_gaussian():
    """N(0, c I): M is a constant and third derivatives vanish, so E of each error has a closed form."""
    schedule, c, rows = VP(), 0.4, 40_000
    t = sample_times(schedule, "importance", torch.full((rows,), 0.45)).t
    alpha, sigma = float(schedule.alpha(t[0])), float(schedule.sigma(t[0]))
    gain = sigma / (alpha**2 * c + sigma**2)
    model = wrap(lambda x, time: gain * x, schedule, "noise")
    torch.manual_seed(0)
    x0 = math.sqrt(c) * torch.randn(rows, 2, dtype=torch.float64)
    m = 1 - sigma * gain  # the posterior variance of eps
    errors = high_order_errors(
        model, x0, t, torch.randn_like(x0), forms=choose_forms(3, "full", "full", 2, 1)
    )
    # residuals are m - r r', r ~ N(0, m I): E |m I - r r'|^2 = m^2 (d^2 + d); third moments by Isserlis
    d = 2
    third = (d + 2) * 2 * d * m**3  # E |(|z|^2 - d - 2) z|^2 = 2 d (d + 2)
    for error, expected in zip(errors, (m, m**2 * (d * d + d) / d**2, third / d**3), strict=True):
        error = error.detach()
        stderr = float(error.std()) / math.sqrt(rows)
        assert abs(float(error.mean()) - expected) < 4 * stderr
        assert stderr < 0.05 * expected


def test_no_gradient_flows_through_the_targets(batch):
    """Perturbing only what is detached must not show in the gradient: the second-order loss of a network
    that is constant in x has none in it."""
    x0, noise, probes, _ = batch
    shift = nn.Parameter(torch.ones(3, dtype=torch.float64))
    model = wrap(lambda x, t: shift + 0 * x, VP(), "noise")
    model.shift = shift
    forms = choose_forms(3, "full", "full", 3, 1)
    errors = high_order_errors(model, x0, torch.full((5,), 0.3).double(), noise, forms=forms)
    for error in (errors.second, errors.third):
        if error.requires_grad:
            grads = torch.autograd.grad(error.sum(), shift, allow_unused=True, retain_graph=True)
            assert grads[0] is None or not grads[0].any()
    assert torch.autograd.grad(errors.first.sum(), shift)[0].abs().min() > 0


@pytest.mark.parametrize("weighting", ["likelihood", "uniform", torch.square])
@pytest.mark.parametrize("time_sampling", ["importance", "uniform"])
def test_one_weight_and_one_sampling_of_time_for_all_orders(weighting, time_sampling):
    """The mean loss of each order is the integral of w E error, whatever times are drawn."""
    schedule, c = VP(t_min=0.02), 0.4

    def eps_hat(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return per_row(sigma / (alpha**2 * c + sigma**2), x) * x

    model = wrap(eps_hat, schedule, "noise")
    torch.manual_seed(3)
    x0 = math.sqrt(c) * torch.randn(60_000, 1, dtype=torch.float64)
    losses = hdsm_loss(model, x0, 3, weighting, time_sampling)
    t = torch.linspace(schedule.t_min, schedule.t_max, 200_001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    m = alpha**2 * c / (alpha**2 * c + sigma**2)
    w = weight(weighting, schedule, t)
    for loss, floor in zip(losses, (m, 2 * m**2, 6 * m**3), strict=True):
        loss = loss.detach()
        expected = float(torch.trapezoid(w * floor, t))
        stderr = float(loss.std()) / math.sqrt(len(loss))
        assert abs(float(loss.mean()) - expected) < 4 * stderr
    torch.manual_seed(4)
    first = dsm_loss(model, x0[:50], weighting, time_sampling)
    torch.manual_seed(4)
    assert torch.equal(first, hdsm_loss(model, x0[:50], 2, weighting, time_sampling).first)


@pytest.mark.parametrize("form", THIRD)
def test_images_through_a_unet_train_by_every_form(form):
    torch.manual_seed(0)
    net = UNet(1, width=8, dropout=0.2, classes=3)
    for parameter in net.parameters():  # zero layers would hide what goes through them
        nn.init.normal_(parameter, std=0.1)
    model = score_model(net, VP(), "noise").train()
    second = "quadratic-pair" if form in EXACT else "product+quadratic"
    losses = hdsm_loss(
        model, torch.randn(2, 1, 4, 4), 3, second=second, third=form, probes=2, label=torch.tensor([0, 2])
    )
    assert [loss.shape for loss in losses] == [(2,)] * 3
    sum(loss.sum() for loss in losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_empty_batches_and_bad_options():
    model = smooth_model(VP()).float()
    losses = hdsm_loss(model, torch.zeros(0, 3), 3)
    assert [loss.shape for loss in losses] == [(0,)] * 3
    x0 = torch.randn(4, 3)
    with pytest.raises(ValueError, match="valid values are 1, 2, 3"):
        hdsm_loss(model, x0, 4)
    with pytest.raises(ValueError, match="'full', 'trace', 'product'"):
        hdsm_loss(model, x0, 2, second="jacobian")
    with pytest.raises(ValueError, match="'full', 'vector-laplacian'"):
        hdsm_loss(model, x0, 3, third="trace")
    with pytest.raises(ValueError, match="takes at least two probes a row, got probes=1"):
        hdsm_loss(model, x0, 2, second="product+quadratic-pair")


def test_auto_is_exact_in_few_dimensions_and_unbiased_with_two_probes():
    assert choose_forms(3, "auto", "auto", 3, 1) == (("full",), "vector-laplacian")
    assert choose_forms(2, "auto", "auto", 64, 1) == (("product", "quadratic"), None)
    assert choose_forms(3, "auto", "auto", 64, 2) == (("product", "quadratic-pair"), "laplacian-pair")
    assert choose_forms(1, "auto", "auto", 64, 1) == ((), None)
