"""The Runge-Kutta step on a GPU against the reference on the CPU."""

import pytest
import torch

from fastlik.ops.rk_step import Controller, Status, advance, combine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}


def make(rows, event, dtype):
    """Rows that pass, fail, end and have ended; one holds a NaN."""
    torch.manual_seed(0)
    kind = torch.arange(rows) % 5
    h = 0.1 * (1 + torch.rand(rows, dtype=torch.float64))
    h[kind == 1] *= 20
    step = {
        "y": torch.randn(rows, *event, dtype=dtype),
        "k": torch.randn(7, rows, *event, dtype=dtype),
        "h": h,
        "error_prev": torch.full((rows,), 0.3, dtype=torch.float64),
        "rejected": torch.rand(rows) < 0.5,
        "t": torch.zeros(rows, dtype=torch.float64),
        "t_end": torch.where(kind == 2, h, 100.0),
        "status": torch.where(kind == 3, int(Status.DONE), int(Status.RUNNING)).int(),
        "defect": torch.ones(rows, dtype=torch.float64),
        "q": torch.randn(rows, 3, dtype=torch.float64),
        "kq": torch.randn(7, rows, 3, dtype=torch.float64),
        "sensitivity": torch.randn(rows, *event, dtype=dtype),
    }
    step["k"][2, kind == 4] = torch.nan
    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(1,), (5,), (3, 7, 5), (1000,)])
@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_native_on_the_gpu_is_the_reference(rows, event, dtype):
    settings = {"b": B, "e": E, "rtol": 1e-2, "atol": 1e-2, "controller": Controller(order=5)}
    settings["q_atol"] = 0.03 * torch.Size(event).numel() ** 0.5
    expected = make(rows, event, dtype)
    actual = {name: value.cuda() for name, value in expected.items()}
    tolerance = {"rtol": ROUNDING[dtype], "atol": ROUNDING[dtype], "equal_nan": True}

    state = combine(*(actual[x] for x in ("y", "k")), B, actual["h"], backend="native")
    reference = combine(*(expected[x] for x in ("y", "k")), B, expected["h"], backend="torch")
    torch.testing.assert_close(state.cpu(), reference, **tolerance)

    actual |= advance(**actual, **settings, backend="native")._asdict()
    expected |= advance(**expected, **settings, backend="torch")._asdict()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name].cpu(), value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
