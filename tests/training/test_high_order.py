"""Runs of second and third order: losses, warm starts, resuming, memory, compilation, several processes."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlik import load
from fastlik.nn import MLP, UNet
from fastlik.objectives import above_noise, choose_forms, draw, hdsm_loss
from fastlik.schedule import VP
from fastlik.training import train
from fastlik.training.network import score_model
from fastlik.training.objective import Objective
from fastlik.training.trainer import _split

QUIET = {"progress": False, "device": "cpu"}
DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def small():
    torch.manual_seed(0)
    return MLP(2, width=16, depth=2, time_features=8)


@pytest.mark.parametrize("order", [2, 3])
def test_losses_of_each_order_are_logged_and_fall(order):
    data = 0.1 * DATA + torch.tensor([1.0, -1.0]) * torch.randint(2, (200, 1)).mul(2).sub(1)
    options = {"order_weights": (0.5, 0.2), "steps": 300, "batch_size": 64, "warmup": 20, **QUIET}
    run = train(data, small(), order=order, **options)
    assert [name for name in run.history[0] if name.startswith("loss")] == [
        "loss", *(f"loss_{k}" for k in range(1, order + 1))
    ]  # fmt: skip
    for record in run.history:
        total = record["loss_1"] + 0.5 * record["loss_2"] + 0.2 * record.get("loss_3", 0.0)
        assert record["loss"] == pytest.approx(total, rel=1e-5)
    for k in range(1, order + 1):
        assert run.history[-1][f"loss_{k}"] < 0.8 * run.history[0][f"loss_{k}"]


def test_weights_of_orders_may_depend_on_time():
    """A function that is constant is the number; one that vanishes leaves first order."""
    options = {"steps": 20, "batch_size": 32, **QUIET}
    by_number = train(DATA, small(), order=3, order_weights=(0.5, 0.1), **options)
    constant = (lambda t: torch.full_like(t, 0.5), lambda t: torch.full_like(t, 0.1))
    by_function = train(DATA, small(), order=3, order_weights=constant, **options)
    assert by_function.history[0]["loss"] == pytest.approx(by_number.history[0]["loss"], rel=1e-6)
    vanishing = train(DATA, small(), order=2, order_weights=(lambda t: 0 * t, 0.0), **options)
    first = train(DATA, small(), order=1, **options)
    for a, b in zip(vanishing.model.parameters(), first.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    faded = above_noise(VP(), 0.1, power=2)
    t = VP().t(torch.tensor([40.0, -2 * torch.tensor(0.1).log(), -10.0], dtype=torch.float64))
    expected = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(faded(t), expected, rtol=1e-3, atol=1e-3)


def test_the_learning_rate_cools_down_to_zero(tmp_path):
    options = {"batch_size": 8, "lr": 1e-3, "warmup": 0, "cooldown": 0.5, **QUIET}
    run = train(DATA, small(), steps=80, out=tmp_path, **options)
    assert [record["lr"] for record in run.history] == pytest.approx([1e-3, 1e-3, 5.25e-4, 2.5e-5])
    with pytest.raises(ValueError, match="training.steps: 80 in the folder, 100 now"):
        train(DATA, small(), steps=100, out=tmp_path, **options)
    with pytest.raises(ValueError, match="cooldown is a part of the steps"):
        train(DATA, small(), cooldown=2.0, **QUIET)


def test_orders_train_different_models_from_the_same_first_batch():
    runs = {order: train(DATA, small(), order=order, steps=20, batch_size=32, **QUIET) for order in (1, 2, 3)}
    # the first-order loss of the record is of (nearly) the same weights and draws
    assert runs[2].history[0]["loss_1"] == pytest.approx(runs[1].history[0]["loss"], rel=0.02)
    assert runs[3].history[0]["loss_1"] == pytest.approx(runs[1].history[0]["loss"], rel=0.02)
    weights = [next(run.model.parameters()) for run in runs.values()]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("order", [1, 3])
def test_warm_start_from_the_folder_of_a_run(order, tmp_path):
    options = {"schedule": "ve", "predicts": "v", "steps": 30, "batch_size": 32}
    first = train(DATA, small(), out=tmp_path / "1", **options, **QUIET)
    options = {"order": order, "steps": 20, "batch_size": 32, "lr": 1e-4, **QUIET}
    warm = train(DATA, tmp_path / "1", out=tmp_path / "2", **options)
    same = train(DATA, first.model, **options)
    assert warm.model.predicts == "v" and warm.model.schedule == first.model.schedule
    for a, b, c in zip(*(run.model.parameters() for run in (warm, same, first)), strict=True):
        assert torch.equal(a, b)
        assert (a - c).abs().max() < 0.01  # it did not start anew
    resumed = train(DATA, tmp_path / "1", out=tmp_path / "2", **{**options, "steps": 40})
    assert resumed.history[-1]["step"] == 40
    assert load(tmp_path / "2").predicts == "v"
    with pytest.raises(FileNotFoundError, match="no model at"):
        train(DATA, tmp_path / "nowhere", **QUIET)


def test_a_run_resumes_exactly_with_the_losses_of_its_orders(tmp_path):
    options = {"order": 2, "batch_size": 16, **QUIET}
    whole = train(DATA, small(), steps=50, **options)
    train(DATA, small(), steps=30, out=tmp_path, **options)
    resumed = train(DATA, small(), steps=50, out=tmp_path, **options)
    names = ("step", "loss", "loss_1", "loss_2", "grad_norm")
    assert [[r[n] for n in names] for r in resumed.history] == [[r[n] for n in names] for r in whole.history]
    config = json.loads((tmp_path / "config.json").read_text())["training"]
    assert config["order"] == 2 and config["order_weights"] == [0.5, 0.1] and config["second"] == "auto"
    with pytest.raises(ValueError, match="training.second"):
        train(DATA, small(), steps=50, out=tmp_path, second="trace", **options)


def test_parts_change_nothing_but_memory():
    options = {"order": 3, "steps": 20, "batch_size": 30, **QUIET}
    whole, cut = (train(DATA, small().double(), parts=parts, **options) for parts in (1, 4))
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert _split(slice(3, 13), 4) == [slice(3, 5), slice(5, 8), slice(8, 10), slice(10, 13)]
    assert _split(slice(0, 2), 4) == [slice(0, 1), slice(1, 2)]


class Peak:
    """The most bytes of saved activations alive at once, counted by storage."""

    def __init__(self):
        self.alive, self.bytes, self.peak = {}, 0, 0

    def pack(self, tensor):
        import weakref

        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.alive and not isinstance(tensor, torch.nn.Parameter):
            self.alive[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, key)
        return tensor

    def _free(self, key):
        self.bytes -= self.alive.pop(key)


@pytest.mark.parametrize("third", ["laplacian", "mixed", "gradient"])
def test_third_order_takes_at_most_three_times_the_memory_of_first_order(third):
    """Activations that a step keeps for its backward pass, on the U-Net, as train cuts the batch."""
    torch.manual_seed(0)
    net = UNet(1)
    model, x0 = score_model(net, VP(), "noise"), torch.randn(16, 1, 8, 8)

    def peak(order, parts):
        forms = choose_forms(order, "auto", third, 64, 1)
        objective = Objective(model, forms, (0.5, 0.1))
        draws = draw(model, x0, "likelihood", "importance", forms, 1)
        largest = 0
        for part in _split(slice(0, 16), parts):
            counter = Peak()
            with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
                objective(x0[part], draws.rows(part), {})[0].backward()
            largest = max(largest, counter.peak)
        return largest

    first = peak(1, 1)
    assert peak(3, 4) <= 3 * first
    assert peak(3, 1) > 3 * first  # or there were no need to cut


def test_compiled_steps_are_the_eager_ones():
    options = {"order": 3, "order_weights": (0.5, 0.1), "steps": 20, "batch_size": 16, **QUIET}
    net = MLP(1, width=8, depth=1)
    eager, compiled = (train(DATA[:, :1], net, compile=choice, **options) for choice in (False, True))
    for name in ("loss_1", "loss_2", "loss_3"):
        assert compiled.history[0][name] == pytest.approx(eager.history[0][name], rel=1e-3)


@pytest.fixture
def quick_compiler(monkeypatch):
    """Graphs and their gradients as for every compiler, without the minutes of code generation."""
    quick = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", quick)


def test_networks_for_images_compile_in_one_graph(quick_compiler):
    """Through torch.cat and with labels, in parts of uneven sizes."""
    torch.manual_seed(0)
    labels = torch.arange(24) % 3
    options = {"order": 2, "steps": 20, "batch_size": 7, "parts": 2, "condition": {"label": labels}, **QUIET}
    net = UNet(1, width=4, multipliers=(1,), attention=False, classes=3)
    eager, compiled = (train(IMAGES, net, compile=choice, **options) for choice in (False, True))
    for name in ("loss_1", "loss_2"):
        assert compiled.history[0][name] == pytest.approx(eager.history[0][name], rel=1e-3)


class Branching(torch.nn.Module):
    """What no exporter captures: a decision by the values."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x, time):
        return self.linear(x) if float(x.sum()) > 0 else 2 * self.linear(x)


def test_a_network_that_cannot_be_captured_is_refused():
    with pytest.raises(ValueError, match="not compilable, choose compile=False"):
        train(DATA, Branching(), order=2, compile=True, steps=1, **QUIET)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"order": 2, "second": "hessian"}, "'full', 'trace'"),
        ({"order": 3, "third": "trace"}, "'full', 'vector-laplacian'"),
        ({"order": 2, "second": "quadratic-pair"}, "takes at least two probes"),
        ({"order": 2, "order_weights": (1.0,)}, "order_weights are two"),
        ({"order": 2, "order_weights": (1.0, -1.0)}, "numbers >= 0"),
        ({"order": 2, "order_weights": (torch.sum, 1.0)}, "one weight a time"),
        ({"order": 2, "probes": 0}, "probes must be an integer of at least 1"),
        ({"order": 3, "third": "full", "compile": True}, "third='full' takes a reverse pass"),
        ({"order": 2, "parts": 0}, "parts must be an integer of at least 1"),
    ],
)
def test_bad_options_list_the_valid_ones(options, match):
    with pytest.raises(ValueError, match=match):
        train(DATA, small(), **options, **QUIET)


def test_images_of_third_order_by_the_loss_of_two_probes():
    run = train(IMAGES, UNet(1, width=8), order=3, probes=2, steps=20, batch_size=4, **QUIET)
    assert set(run.history[0]) >= {"loss_1", "loss_2", "loss_3"}
    torch.manual_seed(0)
    losses = hdsm_loss(run.model, IMAGES, 3, probes=2)
    assert all(loss.shape == (24,) and loss.isfinite().all() for loss in losses)


SCRIPT = """
import sys, torch, fastlik
from pathlib import Path
from fastlik.nn import MLP
torch.set_num_threads(1)
data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
folder, many = Path(sys.argv[1]), len(sys.argv) > 2
for order in (1, 3):
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=2, time_features=8).double()
    options = {"order": order, "steps": 40, "batch_size": 31, "parts": 2, "warmup": 5, "progress": False}
    run = fastlik.train(data, net, out=folder / str(order), device="cpu", **options)
    again = fastlik.train(data, net, out=folder / str(order), device="cpu", **options)
    assert len(run.history) == len(again.history) == 2
if many:  # an error of the main process is raised by all
    try:
        fastlik.train(data, net, order=2, out=folder / "1", device="cpu", progress=False)
    except ValueError as error:
        assert "another configuration" in str(error)
    else:
        raise AssertionError
"""


def test_two_processes_train_the_model_of_one(tmp_path):
    """torchrun with gloo; an uneven batch, two parts, files by the main process alone."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = Path(sys.executable).with_name("torchrun")
    for command in (
        [torchrun, "--standalone", "--nproc-per-node=2", script, str(tmp_path / "two"), "many"],
        [sys.executable, script, str(tmp_path / "one")],
    ):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr
    for order in ("1", "3"):
        one, two = load(tmp_path / "one" / order), load(tmp_path / "two" / order)
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        files = [tmp_path / name / order / "metrics.jsonl" for name in ("one", "two")]
        logs = [file.read_text().splitlines() for file in files]
        for line, other in zip(*logs, strict=True):
            assert json.loads(line)["loss"] == pytest.approx(json.loads(other)["loss"], rel=1e-6)
