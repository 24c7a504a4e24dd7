import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastlik.model import wrap
from fastlik.nn import MLP, UNet
from fastlik.schedule import VE, VP, LogSNR, RectifiedFlow
from fastlik.training import load, train

DATA = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
LEVELS = torch.randint(5, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0))
OPTIONS = {"steps": 6, "batch_size": 8, "progress": False, "device": "cpu"}


class Foreign(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))
        self.tied = self.layers[0].weight  # tensors that share memory

    def forward(self, x, time):
        return self.layers(torch.cat((x, time[:, None]), 1))


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [
        ("vp", "noise"),
        (VE(sigma_max=20.0), "score"),
        (RectifiedFlow(data_at=1), "velocity"),
        (LogSNR(path="straight"), "v"),
        ("edm", "edm"),
    ],
)
def test_loading_gives_bit_identical_outputs(schedule, predicts, tmp_path):
    run = train(DATA, schedule=schedule, predicts=predicts, out=tmp_path, **OPTIONS)
    x = torch.randn(7, 2)
    t = torch.linspace(run.model.schedule.t_min, run.model.schedule.t_max, 7)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = load(path)
        assert torch.equal(model(x, t), run.model(x, t))
        assert model.schedule == run.model.schedule
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        for mine, theirs in zip(model.moments, run.model.moments, strict=True):
            assert torch.equal(mine, theirs)
        assert model.quantisation is None and model.event_shape == (2,)


def test_discrete_data_and_unets_come_back_whole(tmp_path):
    run = train(
        LEVELS, UNet(1, width=8), bins=5, data_range=(0, 1), out=tmp_path, **OPTIONS
    )  # fmt: skip
    model = load(str(tmp_path))
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(model.denoised(x, 0.3), run.model.denoised(x, 0.3))
    assert model.quantisation == run.model.quantisation
    assert model.quantisation.bins == 5 and model.quantisation.range == (0, 1)


def test_foreign_networks_need_themselves(tmp_path):
    run = train(DATA, Foreign(), out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="Foreign: pass one as net="):
        load(tmp_path)
    model = load(tmp_path, net=Foreign())
    x = torch.randn(4, 2)
    assert torch.equal(model.noise(x, 0.5), run.model.noise(x, 0.5))
    with pytest.raises(ValueError, match="model.safetensors do not fit the network"):
        load(tmp_path, net=Foreign(width=9))


def test_conventions_that_are_functions_need_the_whole_model(tmp_path):
    def make():
        return wrap(MLP(2, width=8), VP(), "noise", time=lambda t: t.sqrt())

    run = train(DATA, make(), out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"its own time=.*pass net= the same fastlik.wrap"):
        load(tmp_path)
    x = torch.randn(4, 2)
    assert torch.equal(load(tmp_path, net=make()).noise(x, 0.5), run.model.noise(x, 0.5))


def test_the_folder_holds_what_the_run_was(tmp_path):
    train(DATA, out=tmp_path, weighting=torch.exp, **{**OPTIONS, "steps": 25})
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "model.safetensors", "state.safetensors"}
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1  # as shareable as any file
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["network"]["name"] == "MLP"
    assert config["model"]["schedule"] == VP().to_dict()
    assert config["training"]["weighting"] == "function exp"
    assert config["training"]["lr"] == 2e-3 and config["training"]["precision"] == "float32"
    assert config["data"]["shape"] == [60, 2] and len(config["data"]["sha256"]) == 64
    assert config["run"]["steps"] == 25 and "torch" in config["run"]["versions"]
    assert "data_mean" in load_file(tmp_path / "model.safetensors")


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    train(DATA, out=tmp_path, **OPTIONS)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        train(DATA, out=tmp_path, lr=3e-3, predicts="v", schedule="ve", **OPTIONS)
    message = str(caught.value)
    assert "training.lr: 0.002 in the folder, 0.003 now" in message
    assert "model.predicts: 'noise' in the folder, 'v' now" in message
    assert "model.schedule.name: 'VP' in the folder, 'VE' now" in message
    assert "training.ema" not in message and "run.steps" not in message
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(ValueError, match=r"data.sha256"):
        train(DATA + 1, out=tmp_path, **OPTIONS)
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(DATA, out=tmp_path, resume=False, **OPTIONS)


@pytest.mark.parametrize("name", ["state.safetensors", "model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_damaged_and_foreign_files_are_named(name, damage, tmp_path):
    train(DATA, MLP(2, width=8), out=tmp_path, **OPTIONS)
    file = tmp_path / name
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif name == "config.json":
        file.write_text('{"model_type": "unet"}')
    else:
        save_file({"weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        if name == "state.safetensors":
            train(DATA, MLP(2, width=8), out=tmp_path, **{**OPTIONS, "steps": 9})
        else:
            load(tmp_path)
    remedy = ("restore it", "another folder", "fastlik.wrap")
    assert any(words in str(caught.value) for words in remedy)


def test_a_missing_model_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a run folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model at"):
        load(tmp_path / "none")


def test_a_folder_of_other_files_is_not_overwritten(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds model.safetensors but no config.json"):
        train(DATA, out=tmp_path, **OPTIONS)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("fastlik.training.loop._steps", None)  # must not be reached
    with pytest.raises(OSError, match="cannot write to out=.*choose a folder"):
        train(DATA, out=tmp_path / "file" / "run", **OPTIONS)
    with pytest.raises(OSError, match="cannot write to out="):
        train(DATA, out=tmp_path / "file", **OPTIONS)

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"Permission denied.*choose a folder"):
        train(DATA, out=tmp_path / "run", **OPTIONS)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    class Bomb(MLP):
        calls = 0

        def forward(self, x, time):
            self.calls += 1
            return super().forward(x, time) * (float("inf") if self.calls > 8 else 1.0)

    options = {**OPTIONS, "steps": 40, "checkpoint_every": 4}
    with pytest.raises(FloatingPointError, match=r"step 9; the checkpoint before it is kept"):
        train(DATA, Bomb(2, width=8), out=tmp_path, **options)
    model = load(tmp_path, net=MLP(2, width=8))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install fastlik\[train\]"):
        train(DATA, out=tmp_path, **OPTIONS)
    train(DATA, **OPTIONS)  # in memory nothing is missing
    monkeypatch.setitem(sys.modules, "tqdm", None)
    train(DATA, **{**OPTIONS, "progress": True})
