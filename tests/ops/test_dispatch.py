"""The dispatch rule: auto falls back aloud, an explicit backend runs or raises, nothing is silent."""

import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastlik.ops import dispatch
from fastlik.ops.dispatch import backends, choose, native_module
from fastlik.ops.rk_step import combine

X = torch.zeros(2, 3)
needs_native = pytest.mark.skipif(native_module() is None, reason="the native module is not built")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No warning given yet, and no preference of the person who runs the tests."""
    monkeypatch.delenv("FASTLIK_BACKEND", raising=False)
    dispatch._warn_once.cache_clear()
    yield
    dispatch._warn_once.cache_clear()


@pytest.fixture
def unbuilt(monkeypatch):
    """A machine on which no compiler was found."""
    monkeypatch.setattr(dispatch, "_load_native", lambda: (None, "no C++ compiler found"))


def call(backend="auto", dtype=torch.float32):
    y = torch.ones(2, 3, dtype=dtype)
    return combine(y, y[None], (1.0,), torch.ones(2, dtype=torch.float64), backend=backend)


def test_an_unknown_backend_lists_the_valid_ones(monkeypatch):
    with pytest.raises(ValueError, match="'cuda' is unknown.*'auto', 'native', 'triton', 'torch'"):
        call("cuda")
    monkeypatch.setenv("FASTLIK_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTLIK_BACKEND='fast' is unknown.*'auto', 'native'"):
        call()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auto_takes_native_on_the_cpu(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("rk_step", "auto", X.to(dtype)) == "native"


def test_auto_falls_back_with_one_warning(unbuilt):
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler found.*reinstall") as caught:
        for _ in range(3):
            assert torch.equal(call(), torch.full((2, 3), 2.0))
        call(dtype=torch.float64)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@needs_native
def test_a_dtype_that_native_lacks_is_named():
    with pytest.warns(RuntimeWarning, match="torch.float32 and torch.float64, not torch.float16"):
        assert choose("rk_step", "auto", X.half()) == "torch"
    with pytest.raises(RuntimeError, match="not torch.float16"):
        choose("rk_step", "native", X.half())


def test_an_explicit_backend_that_is_missing_raises(unbuilt):
    with pytest.raises(RuntimeError, match="'native' is not available.*no C\\+\\+ compiler.*remedy"):
        call("native")
    with pytest.raises(RuntimeError, match="'triton' is not available"):
        call("triton")
    assert torch.equal(call("torch"), torch.full((2, 3), 2.0))


def test_the_environment_is_for_operations_that_have_the_implementation(monkeypatch):
    """Steps have none in Triton: a likelihood whose layers are Triton's is not refused for that."""
    expected = choose("rk_step", "auto", X)
    monkeypatch.setenv("FASTLIK_BACKEND", "triton")
    assert choose("rk_step", "auto", X) == choose("adams_step", "auto", X) == expected
    with pytest.raises(RuntimeError, match="'triton' is not available"):
        choose("rk_step", "triton", X)


def test_the_environment_stands_in_for_auto(monkeypatch, unbuilt):
    monkeypatch.setenv("FASTLIK_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("rk_step", "auto", X) == "torch"
    monkeypatch.setenv("FASTLIK_BACKEND", "native")
    assert choose("rk_step", "torch", X) == "torch"
    with pytest.raises(RuntimeError, match="not available"):
        choose("rk_step", "auto", X)


def test_no_warning_where_native_was_not_to_be_expected(unbuilt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("rk_step", "auto", torch.empty(2, 3, device="meta")) == "torch"


def test_gradients_and_transforms_need_torch():
    x = X.clone().requires_grad_()
    assert choose("rk_step", "auto", X, x) == "torch"
    with pytest.raises(RuntimeError, match="autograd"):
        choose("rk_step", "native", x)
    seen = []
    torch.func.vmap(lambda row: seen.append(choose("rk_step", "auto", row)) or row)(X)
    torch.func.jvp(lambda row: seen.append(choose("rk_step", "auto", row)) or row, (X,), (X,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, X)
        seen.append(choose("rk_step", "auto", dual))
    assert seen == ["torch"] * 3


@needs_native
def test_no_grad_lets_native_run():
    with torch.no_grad():
        assert choose("rk_step", "auto", X.clone().requires_grad_()) == "native"


def test_backends_say_what_is_there():
    found = backends()
    assert found["torch"]["available"] and set(found) == {"torch", "native", "triton"}
    for facts in found.values():
        assert facts["available"] == (facts["why"] == "")
    if native_module() is not None:
        assert found["native"]["isa"] in found["native"]["isas"]
        assert "compiler" in found["native"]


def test_backends_say_why_not(unbuilt):
    native = backends()["native"]
    assert not native["available"] and native["why"] == "no C++ compiler found"


def test_native_kernels_for_the_cpu_alone_say_so(monkeypatch):
    with FakeTensorMode():
        x = torch.empty(2, 3, device="cuda")
    assert choose("adams_step", "auto", x) == "torch"
    with pytest.raises(RuntimeError, match="native adams_step takes CPU tensors"):
        choose("adams_step", "native", x)
    monkeypatch.setenv("FASTLIK_BACKEND", "native")
    assert choose("adams_step", "auto", x) == "torch"
