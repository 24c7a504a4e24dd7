"""The Runge-Kutta step: the reference against a scalar loop, every implementation against it."""

import math

import pytest
import torch

from fastlik.ops.dispatch import native_module
from fastlik.ops.rk_step import MAX_STAGES, Controller, Status, advance, combine

# Dormand-Prince 5(4): the solution has weight 0 in the last stage, the error has not
B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
A_LAST = (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)
SETTINGS = {"b": B, "e": E, "rtol": 1e-2, "atol": 1e-2, "controller": Controller(order=5)}
EVENTS = [(1,), (5,), (3, 7, 5), (1000,)]
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}

native = native_module()
needs_native = pytest.mark.skipif(native is None, reason="the native module is not built")


@pytest.fixture(autouse=True)
def threads():
    """One thread: small tensors on a busy machine wait for the second one most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=native.isas() if native else [])
def isa(request):
    """Runs the test with each instruction set that this CPU has."""
    before = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)


def make(rows, event=(5,), dtype=torch.float64, probes=3, sensitivity=True, direction=1, seed=0):
    """A step of ``rows`` rows on [0, 10] (or back from 0 to -10), error about half a tolerance."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=torch.float64):
        return torch.randn(*shape, dtype=torch.float64, generator=random).to(dtype)

    size = 0.1 * (1 + torch.rand(rows, dtype=torch.float64, generator=random))
    step = {
        "y": normal(rows, *event, dtype=dtype),
        "k": normal(len(B), rows, *event, dtype=dtype),
        "h": direction * size,
        "error_prev": torch.full((rows,), 0.3, dtype=torch.float64),
        "rejected": torch.rand(rows, generator=random) < 0.5,
        "t": torch.zeros(rows, dtype=torch.float64),
        "t_end": torch.full((rows,), 10.0 * direction, dtype=torch.float64),
        "status": torch.zeros(rows, dtype=torch.int32),
        "defect": torch.ones(rows, dtype=torch.float64),
    }
    if probes:
        step |= {"q": normal(rows, probes), "kq": normal(len(B), rows, probes)}
        step["q_atol"] = 0.03 * math.sqrt(math.prod(event))
    if sensitivity:
        step["sensitivity"] = normal(rows, *event, dtype=dtype)
    return step


def easy(rows, **options):
    """A step that every row passes by far."""
    step = make(rows, **options)
    step["k"] *= 1e-8
    if "kq" in step:
        step["kq"] *= 1e-8
    return step


def clone(step):
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in step.items()}


def run(step, **options):
    """The step and its outcome, as one dictionary; the argument is left alone."""
    after = clone(step)
    outcome = advance(**after, **SETTINGS | options)
    return after | outcome._asdict()


def assert_same(actual, expected, rounding):
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor):
            continue
        tolerance = rounding if value.is_floating_point() else 0
        torch.testing.assert_close(
            actual[name],
            value,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def scalar_advance(step, fsal=True):
    """The specification once more, one number at a time in Python floats."""
    after = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in step.items()}
    rows = len(after["y"])
    after["accepted"], after["error"] = [False] * rows, [0.0] * rows
    for r in range(rows):
        if after["status"][r] != Status.RUNNING:
            continue
        h, t, t_end = after["h"][r], after["t"][r], after["t_end"][r]
        y = after["y"][r]
        k = [stage[r] for stage in after["k"]]
        y_new = [v + h * sum(B[j] * k[j][i] for j in range(7)) for i, v in enumerate(y)]
        err = [h * sum(E[j] * k[j][i] for j in range(7)) for i in range(len(y))]
        scale = [1e-2 + 1e-2 * max(abs(v), abs(w)) for v, w in zip(y, y_new, strict=True)]
        error = math.sqrt(sum((d / s) ** 2 for d, s in zip(err, scale, strict=True)) / len(y))
        gap = 0.0
        if "sensitivity" in after:
            gap += sum(s * d for s, d in zip(after["sensitivity"][r], err, strict=True))
        if "q" in after:
            kq = [stage[r] for stage in after["kq"]]
            probes = range(len(kq[0]))
            gap += sum(h * E[j] * kq[j][p] for j in range(7) for p in probes) / len(probes)
            error = max(error, abs(gap) / after["q_atol"])
        factor = 0.9 * error ** -(0.2 - 0.03) * after["error_prev"][r] ** 0.04
        factor = min(10.0, max(0.2, factor))
        accepted = error <= 1
        if accepted:
            if "q" in after:
                q = after["q"][r]
                after["q"][r] = [q[p] + h * sum(B[j] * kq[j][p] for j in range(7)) for p in probes]
                if fsal:
                    after["kq"][0][r] = kq[6]
            if fsal:
                after["k"][0][r] = k[6]
            after["y"][r] = y_new
            after["defect"][r] += abs(gap)
            after["error_prev"][r] = max(error, 1e-4)
            if after["rejected"][r]:
                factor = min(factor, 1.0)
            if abs(t_end - t) <= abs(h):
                t, after["status"][r] = t_end, Status.DONE
            else:
                t += h
        h = math.copysign(min(abs(h * factor), abs(t_end - t)), h)
        if after["status"][r] == Status.RUNNING and abs(h) < 16 * 2**-52 * max(abs(t), abs(t_end)):
            after["status"][r] = Status.UNDERFLOW
        after["t"][r], after["h"][r], after["rejected"][r] = t, h, not accepted
        after["accepted"][r], after["error"][r] = accepted, error
    return {
        k: torch.tensor(v, dtype=step[k].dtype) if isinstance(step.get(k), torch.Tensor) else v
        for k, v in after.items()
    }


def mixed(rows=64, **options):
    """Rows in every situation: accepted, rejected, last step, finished before, failed before."""
    step = make(rows, **options)
    kind = torch.arange(rows) % 5
    step["h"][kind == 1] *= 4  # too large: rejected
    step["t_end"][kind == 2] = (step["t"] + step["h"])[kind == 2]
    step["status"][kind == 3] = Status.DONE
    step["status"][kind == 4] = Status.NON_FINITE
    return step


# --- the reference ------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [0, 3])
@pytest.mark.parametrize("sensitivity", [False, True])
@pytest.mark.parametrize("fsal", [False, True])
@pytest.mark.parametrize("direction", [1, -1])
def test_reference_is_the_scalar_loop(probes, sensitivity, fsal, direction):
    step = mixed(probes=probes, sensitivity=sensitivity, direction=direction)
    actual = run(step, fsal=fsal, backend="torch")
    expected = scalar_advance(step, fsal)
    assert len(set(expected["accepted"])) == 2 and Status.DONE in expected["status"]
    expected["accepted"] = torch.tensor(expected["accepted"])
    expected["error"] = torch.tensor(expected["error"], dtype=torch.float64)
    assert_same(actual, expected, 1e-12)


def test_reference_combine_is_the_sum():
    step = make(4)
    actual = combine(step["y"], step["k"], A_LAST, step["h"], backend="torch")
    total = sum(a * k for a, k in zip(A_LAST, step["k"], strict=False))
    torch.testing.assert_close(actual, step["y"] + step["h"][:, None] * total)


# --- native against the reference ---------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("rows", [0, 1, 7, 64])
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_combine(isa, rows, event, dtype, count):
    step = make(rows, event, dtype)
    step["k"][count:] = math.nan  # stages without a weight are not read
    args = (step["y"], step["k"], A_LAST[:count], step["h"])
    expected = combine(*args, backend="torch")
    actual = combine(*args, backend="native")
    torch.testing.assert_close(actual, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    in_place = combine(*args, out=step["y"], backend="native")
    assert in_place is step["y"] and torch.equal(in_place, actual)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("rows", [0, 1, 7, 64])
@pytest.mark.parametrize("probes, sensitivity", [(0, False), (1, False), (0, True), (3, True)])
def test_advance(isa, rows, event, dtype, probes, sensitivity):
    for direction in (1, -1):
        options = {"probes": probes, "sensitivity": sensitivity, "direction": direction}
        step = mixed(rows, event=event, dtype=dtype, **options)
        for fsal in (True, False):
            actual = run(step, backend="native", fsal=fsal)
            assert_same(actual, run(step, backend="torch", fsal=fsal), ROUNDING[dtype])
            if rows == 64 and event != (1,):
                assert 0 < actual["accepted"].sum() < 40


@pytest.fixture(params=["torch", pytest.param("native", marks=needs_native)])
def backend(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_nans_leaves_its_neighbours_alone(backend, dtype):
    step = mixed(7, event=(3, 7, 5), dtype=dtype)
    expected = run(step, backend=backend)
    broken = clone(step)
    broken["k"][2, 5, 1, 3, 2] = math.nan
    actual = run(broken, backend=backend)
    others = torch.arange(7) != 5
    for name, value in actual.items():
        if isinstance(value, torch.Tensor):
            rows = (slice(None), others) if name in ("k", "kq") else others
            assert torch.equal(value[rows], expected[name][rows]), name
    assert not actual["accepted"][5] and actual["error"][5].isnan() and actual["rejected"][5]
    assert torch.equal(actual["y"][5], step["y"][5])
    assert actual["h"][5] == step["h"][5] * 0.2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["k", "kq", "y"])
def test_nothing_that_is_not_finite_is_accepted(backend, where, value):
    step = easy(3)
    if where == "y":  # an infinite state has an infinite scale: its error would look like 0
        step["y"][1] = value
    else:
        step[where][2, 1, 0] = value
    after = run(step, backend=backend)
    assert after["accepted"].tolist() == [True, False, True]
    assert not after["error"][1].isfinite()
    assert torch.equal(after["q"][1], step["q"][1])


def test_an_overflow_of_the_new_state_is_not_accepted(backend):
    step = easy(2, dtype=torch.float32)
    step["k"][2, 1] = 3e38
    step["h"][1] = 8.0
    after = run(step, backend=backend, e=(0,) * 7)  # an error estimate that sees nothing
    assert after["accepted"].tolist() == [True, False]


def test_rows_that_do_not_run_are_untouched(backend):
    step = easy(len(Status))
    step["status"] = torch.tensor(list(Status), dtype=torch.int32)
    after = run(step, backend=backend)
    assert after["accepted"].tolist() == [True] + [False] * (len(Status) - 1)
    assert after["error"][1:].tolist() == [0] * (len(Status) - 1)
    for name, value in step.items():
        if isinstance(value, torch.Tensor):
            rows = (slice(None), slice(1, None)) if name in ("k", "kq") else slice(1, None)
            assert torch.equal(after[name][rows], value[rows]), name


@pytest.mark.parametrize("start, end", [(0, 1), (1, 0), (-0.3, 0.1), (1e-5, 1), (7, 7.3)])
def test_the_clock_ends_exactly_at_t_end(backend, start, end):
    step = easy(1)
    step["t"][:], step["t_end"][:] = start, end
    step["h"][:] = (end - start) / 10
    controller = Controller(order=5, max_factor=1.0 + 1e-15)  # ten equal steps, up to rounding
    for _ in range(12):
        after = run(step, backend=backend, controller=controller)
        assert abs(after["t"] - start) <= abs(end - start)
        step = {name: after[name] for name in step}
        if step["status"] != Status.RUNNING:
            break
    assert step["status"] == Status.DONE and step["t"] == end and step["h"] == 0


@pytest.mark.parametrize("direction", [1, -1])
def test_the_next_step_is_cut_at_t_end(backend, direction):
    step = easy(1, direction=direction)
    step["t_end"] = 1.5 * step["h"]
    after = run(step, backend=backend)
    assert after["status"] == Status.RUNNING
    assert after["t"] + after["h"] == after["t_end"]
    after = run({name: after[name] for name in step}, backend=backend)
    assert after["status"] == Status.DONE and after["t"] == after["t_end"]


@pytest.mark.parametrize("value, status", [(1e9, Status.UNDERFLOW), (math.nan, Status.NON_FINITE)])
def test_steps_that_shrink_to_nothing(backend, value, status):
    step = easy(3)
    step["t"][:], step["t_end"][:] = 5.0, 10.0
    for _ in range(40):
        step["h"][::2] = 1e-3  # the neighbours go on
        step["k"][4, 1] = value / step["h"][1]
        after = run(step, backend=backend)
        step = {name: after[name] for name in step}
    assert step["status"].tolist() == [Status.RUNNING, status, Status.RUNNING]
    assert abs(step["h"][1]) < 1e-13


def test_no_growth_right_after_a_rejection(backend):
    step = easy(2)
    step["rejected"] = torch.tensor([False, True])
    after = run(step, backend=backend)
    assert (after["h"] / step["h"]).tolist() == [10.0, 1.0]
    assert after["error_prev"].tolist() == [1e-4, 1e-4]
    assert not after["rejected"].any()


# --- memory and arguments -----------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_change_no_bit(dtype):
    step = mixed(64, event=(1000,), dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        result = run(step, backend="native")
        result["combined"] = combine(step["y"], step["k"], B, step["h"], backend="native")
        results.append(result)
    for result in results[1:]:
        assert all(torch.equal(v, results[0][k]) for k, v in result.items() if isinstance(v, torch.Tensor))


def test_strided_rows(backend):
    """Rows cut out of larger tensors, and stages stored behind the rows."""
    step = mixed(7, event=(3, 5))
    expected = run(step, backend=backend)
    strided = clone(step)
    strided["y"] = torch.zeros(14, 3, 5, dtype=torch.float64)[::2].copy_(step["y"])
    strided["k"] = step["k"].transpose(0, 1).contiguous().transpose(0, 1)
    strided["kq"] = step["kq"].transpose(0, 1).contiguous().transpose(0, 1)
    strided["sensitivity"] = torch.zeros(7, 2, 3, 5).double()[:, 1].copy_(step["sensitivity"])
    combined = combine(strided["y"], strided["k"], B, step["h"], backend=backend)
    assert torch.equal(combined, combine(step["y"], step["k"], B, step["h"], backend=backend))
    outcome = advance(**strided, **SETTINGS, backend=backend)
    assert_same(strided | outcome._asdict(), expected, 1e-15)


def test_combine_takes_any_layout(backend):
    step = make(4, event=(6, 5))
    expected = combine(step["y"], step["k"], B, step["h"], backend=backend)
    y = step["y"].transpose(1, 2).contiguous().transpose(1, 2)
    k = step["k"].transpose(2, 3).contiguous().transpose(2, 3)
    h = torch.stack([step["h"], step["h"]], 1)[:, 0]
    assert not (y.is_contiguous() or k.is_contiguous() or h.is_contiguous())
    assert torch.equal(combine(y, k, B, h, backend=backend), expected)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda s: s.update(y=s["y"].half(), k=s["k"].half()), TypeError, "y must be float32 or"),
        (lambda s: s.update(y=s["y"][:, :0]), ValueError, "y must have shape"),
        (lambda s: s.update(k=s["k"][:6]), ValueError, "k must have shape"),
        (lambda s: s.update(k=s["k"][:, :2]), ValueError, "k must have shape"),
        (lambda s: s.update(k=s["k"].float()), TypeError, "k must be torch.float64"),
        (lambda s: s.update(h=s["h"].float()), TypeError, "h must be torch.float64"),
        (lambda s: s.update(t=s["t"][:2]), ValueError, "t must have shape"),
        (lambda s: s.update(status=s["status"].long()), TypeError, "status must be torch.int32"),
        (lambda s: s.update(t_end=s["t_end"][:1].expand(4)), ValueError, "t_end .* contiguous"),
        (lambda s: s.update(y=s["y"].mT.contiguous().mT), ValueError, "y .* contiguous"),
        (lambda s: s.update(y=s["y"][:1].expand(4, 6, 5)), ValueError, "y .* contiguous"),
        (lambda s: s.update(k=s["k"].mT.contiguous().mT), ValueError, "k .* contiguous"),
        (lambda s: s.update(kq=None), ValueError, "q and kq go together"),
        (lambda s: s.update(q=s["q"][:, 0]), ValueError, "q must have shape"),
        (lambda s: s.update(atol=0.0), ValueError, "atol"),
        (lambda s: s.update(q_atol=-1.0), ValueError, "q_atol"),
    ],
)
def test_bad_arguments(backend, change, error, message):
    step = SETTINGS | make(4, event=(6, 5))
    change(step)
    with pytest.raises(error, match=message):
        advance(**step, backend=backend)


def test_out_must_not_overlap_itself(backend):
    step = make(4)
    with pytest.raises(ValueError, match="out .* contiguous"):
        combine(step["y"], step["k"], B, step["h"], step["y"][:1].expand(4, 5), backend)


def test_combine_is_differentiable():
    step = make(2)
    y, k, h = (step[name].requires_grad_() for name in ("y", "k", "h"))
    assert torch.autograd.gradcheck(lambda y, k, h: combine(y, k, B, h), (y, k, h))
    y, k, h = y.detach(), k.detach(), h.detach()
    _, tangent = torch.func.jvp(lambda k: combine(y, k, B, h), (k,), (k,))
    torch.testing.assert_close(tangent, combine(y, k, B, h) - y)


def test_every_status_says_what_it_means():
    assert len({status.description for status in Status}) == len(Status)


def test_controller_needs_a_positive_exponent():
    with pytest.raises(ValueError, match="beta"):
        Controller(order=5, beta=0.3)


@needs_native
def test_the_native_limit_on_stages_is_the_documented_one():
    assert native.max_stages == MAX_STAGES
