"""NLL: means, units, files."""

import json
import math

import numpy as np
import pytest
import torch

import fastlik
from fastlik.testing import GaussianMixture


@pytest.fixture(scope="module")
def result():
    data = GaussianMixture.random(2, 3)
    return fastlik.ode_nll(data.model(fastlik.VP()), data.sample(6), divergence="hutchinson", probes=2)


def test_mean_and_units(result):
    mean = result.mean()
    assert mean.nats == pytest.approx(result.nats.mean().item())
    assert mean.nats_stderr == pytest.approx(result.nats.std().item() / 6**0.5)
    assert mean.bits_per_dim == pytest.approx(mean.nats / (3 * math.log(2)))
    assert mean.bits_per_dim_stderr == pytest.approx(mean.nats_stderr / (3 * math.log(2)))
    assert mean.rows == 6 and "bits/dim" in str(mean)
    torch.testing.assert_close(result.bits_per_dim, result.nats / (3 * math.log(2)))


def test_one_frozen_probe_cannot_tell_its_error():
    data = GaussianMixture.random(2, 3)
    options = dict(divergence="hutchinson", probe_mode="frozen")
    one = fastlik.ode_nll(data.model(fastlik.VP()), data.sample(2), **options)
    assert one.stderr.isnan().all()
    exact = fastlik.ode_nll(data.model(fastlik.VP()), data.sample(2))
    assert (exact.stderr == 0).all()


def test_the_protocol_names_every_convention(result):
    expected = {
        *("estimator", "schedule", "predicts", "t_data", "t_prior", "start", "prior", "method"),
        *("tolerance_nats_per_dim", "divergence", "probes", "probe", "probe_mode", "seed"),
        *("dequantize", "precision", "backend", "standard_prior_mismatch_nats_per_dim"),
    }
    assert expected <= set(result.protocol)


def test_saved_files_hold_everything(result, tmp_path):
    stored = json.loads(result.save(tmp_path / "nll.json").read_text())
    assert stored["nats"] == result.nats.tolist()
    assert stored["mean"]["rows"] == 6 and stored["protocol"]["probes"] == 2
    arrays = np.load(result.save(tmp_path / "nll.npz"))
    np.testing.assert_array_equal(arrays["latent"], result.latent.numpy())
    assert json.loads(str(arrays["protocol"])) == json.loads(json.dumps(result.protocol))
    with pytest.raises(ValueError, match=r"\.json or \.npz"):
        result.save(tmp_path / "nll.csv")


def test_nan_rows_are_null_in_json(result):
    broken = fastlik.NLL(**vars(result) | {"nats": result.nats.clone(), "status": result.status.clone()})
    broken.nats[2], broken.status[2] = torch.nan, 3
    with pytest.warns(fastlik.ConvergenceWarning, match="1 of 6"):
        stored = broken.to_dict()
    assert stored["nats"][2] is None and stored["mean"]["rows"] == 5
    json.dumps(stored, allow_nan=False)
