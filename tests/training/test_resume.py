"""A run that stops and goes on is the run that never stopped, bit for bit."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from fastlik.nn import UNet
from fastlik.training import load, train

LEVELS = torch.randint(5, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
OPTIONS = {
    "bins": 5, "steps": 47, "batch_size": 12, "warmup": 5, "progress": False, "device": "cpu",
}  # fmt: skip


def network():
    torch.manual_seed(0)
    return UNet(1, width=8, dropout=0.3)


class Stop(nn.Module):
    """The network, sending this process a signal in the n-th step."""

    def __init__(self, n):
        super().__init__()
        self.net = network()
        self.left = n

    def forward(self, x, time):
        if self.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return self.net(x, time)


def losses(run):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in run.history]


def assert_same(a, b):
    assert losses(a) == losses(b)
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.fixture(scope="module")
def uninterrupted():
    return train(LEVELS, Stop(-1), **OPTIONS)


@pytest.mark.parametrize("at", [1, 20, 33])
def test_ctrl_c_finishes_the_step_and_the_run_resumes_exactly(at, uninterrupted, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(LEVELS, Stop(at), out=tmp_path, **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is handler
    message = capsys.readouterr().err
    assert f"interrupted after step {at} of 47" in message
    assert str(tmp_path) in message and "resume" in message
    resumed = train(LEVELS, Stop(-1), out=tmp_path, **OPTIONS)
    assert_same(resumed, uninterrupted)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history
    assert [json.loads(line)["step"] for line in lines] == [20, 40]


def test_a_run_killed_between_checkpoints_resumes_from_the_last(uninterrupted, tmp_path):
    class Killed(BaseException):
        pass

    class Dies(Stop):
        def forward(self, x, time):
            self.left -= 1
            if self.left == 0:
                raise Killed
            return self.net(x, time)

    options = {**OPTIONS, "checkpoint_every": 15}
    with pytest.raises(Killed):
        train(LEVELS, Dies(43), out=tmp_path, **options)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2  # steps 20 and 40
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # as a crash may leave it
    assert_same(train(LEVELS, Dies(-1), out=tmp_path, **options), uninterrupted)


def test_raising_the_steps_continues_a_finished_run(uninterrupted, tmp_path):
    short = train(LEVELS, Stop(-1), out=tmp_path, **{**OPTIONS, "steps": 30})
    assert short.history[-1]["step"] == 20
    assert_same(train(LEVELS, Stop(-1), out=tmp_path, **OPTIONS), uninterrupted)
    with pytest.raises(ValueError, match="47 steps, more than steps=30"):
        train(LEVELS, Stop(-1), out=tmp_path, **{**OPTIONS, "steps": 30})
    assert json.loads((tmp_path / "config.json").read_text())["run"]["steps"] == 47


def test_a_finished_run_returns_at_once(uninterrupted, tmp_path):
    train(LEVELS, Stop(-1), out=tmp_path, **OPTIONS)
    again = train(LEVELS, Stop(1), out=tmp_path, **OPTIONS)  # would stop in its first step
    assert_same(again, uninterrupted)
    assert again.path == tmp_path
    assert not any(p.requires_grad for p in again.model.parameters())


def test_ctrl_c_without_a_folder_says_that_nothing_is_kept(capsys):
    with pytest.raises(KeyboardInterrupt):
        train(LEVELS, Stop(2), **OPTIONS)
    assert "with out=" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait():
    from fastlik.training.interrupt import Interrupt

    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_outside_the_main_thread():
    from threading import Thread

    results = []
    thread = Thread(target=lambda: results.append(train(LEVELS, network(), **OPTIONS)))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_load_after_an_interruption_gives_the_averaged_model_so_far(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(LEVELS, Stop(9), out=tmp_path, **OPTIONS)
    so_far = train(LEVELS, Stop(-1), **{**OPTIONS, "steps": 9}).model
    model = load(tmp_path, net=Stop(-1))
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(model.noise(x, 0.4), so_far.noise(x, 0.4))
