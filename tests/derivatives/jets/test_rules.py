"""Every rule against nested reverse mode: one small function an operation."""

import math

import pytest
import torch
from torch.nn import functional as F

from .oracle import check


def tensor(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, B, C = tensor(3, 4, seed=1), tensor(4, 5, seed=2), tensor(2, 3, 4, seed=3)
MASK = C > 0

POINTWISE = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, beta=3.0, threshold=2.0),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": lambda x: F.relu6(3 * x),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype)),
    "elu": lambda x: F.elu(x, 1.3),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "hardswish": lambda x: F.hardswish(3 * x),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x * x + 0.1),
    "log1p": lambda x: torch.log1p(x * x),
    "log2": lambda x: torch.log2(x * x + 0.1),
    "log10": lambda x: torch.log10(x * x + 0.1),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.tan(0.3 * x),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "erf": torch.erf,
    "ndtr": torch.special.ndtr,
    "sinc": torch.sinc,
    "logit": lambda x: torch.logit(torch.sigmoid(x)),
    "sqrt": lambda x: torch.sqrt(x * x + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x * x + 0.1),
    "square": torch.square,
    "cube": lambda x: x**3,
    "power": lambda x: (x * x + 0.1) ** 1.7,
    "power_of_number": lambda x: 2.0**x,
    "power_of_tensors": lambda x: (x * x + 0.1) ** x.sin(),
    "power_constant_exponents": lambda x: (x * x + 0.1) ** C,
    "reciprocal": lambda x: torch.reciprocal(x * x + 1),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.6),
    "clamp_min": lambda x: x.clamp(min=0.1) ** 2,
    "atan2": lambda x: torch.atan2(x, x.cos() + 0.3),
    "dropout_eval": lambda x: F.dropout(x, 0.5, training=False) ** 2,
}
ARITHMETIC = {
    "add_numbers": lambda x: 1 + x + 2,
    "add_broadcast": lambda x: torch.add(x, A[0], alpha=2) * x,
    "add_widening": lambda x: (x[:, :1] + C) * x[:, :, :1],
    "sub": lambda x: 3 - x - x.sin() - A,
    "rsub": lambda x: torch.rsub(x, 2.0) ** 2,
    "mul": lambda x: x * x.sin() * A * 0.5,
    "mul_lower_rank": lambda x: x * x[0].exp() * x[0, 0],
    "div": lambda x: x.sin() / (2 + x.cos()) / 3,
    "div_constant": lambda x: A / (2 + x.cos()),
    "neg": lambda x: -(x**2),
    "addcmul": lambda x: torch.addcmul(A, x, x.sin(), value=0.3),
    "addcmul_film": lambda x: torch.addcmul(x, A, C) ** 2,
    "addcdiv": lambda x: torch.addcdiv(x, x.sin(), 2 + x.cos()),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3) * x,
    "cumsum": lambda x: x.cumsum(1) ** 2,
    "complex": lambda x: torch.view_as_real(torch.polar(x.exp(), x) * torch.complex(x, 2 * x)).flatten(-2),
    "complex_abs": lambda x: (torch.complex(x, x.cos()) * 1j).abs(),
    "fft": lambda x: torch.fft.rfft(x * x).abs() ** 2,
}
REDUCTIONS = {
    "sum": lambda x: (x**2).sum(),
    "sum_dims": lambda x: (x**2).sum((0, -1), keepdim=True) * x,
    "mean": lambda x: x.mean(-1) ** 2,
    "var": lambda x: x.var(-1),
    "std": lambda x: torch.std(x, dim=(1, 2), correction=0),
    "norm": lambda x: x.norm(dim=-1),
    "norm_all": lambda x: torch.linalg.vector_norm(x, 3.0, dim=1),
    "prod": lambda x: x.prod(-1),
    "logsumexp": lambda x: torch.logsumexp(x, (1, 2)),
    "softmax": lambda x: F.softmax(2 * x, -1),
    "softmax_method": lambda x: (3 * x).softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "amax": lambda x: x.amax(1) ** 2,
    "max": lambda x: x.max(-1)[0] ** 2,
    "max_all": lambda x: x.max() * x.min(),
    "maximum": lambda x: torch.maximum(x.sin(), x.cos()),
    "minimum_constant": lambda x: torch.minimum(x**2, A),
    "sort": lambda x: x.sort(-1)[0] ** 2,
    "topk": lambda x: x.topk(2, -1).values ** 2,
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine_similarity": lambda x: F.cosine_similarity(x, A, dim=-1),
}
SHAPES = {
    "view": lambda x: x.contiguous().view(-1, 2, 2).sin() * 2,
    "reshape": lambda x: x.reshape((4, 6)) ** 2,
    "flatten": lambda x: x.flatten(1) ** 2,
    "unflatten": lambda x: x.unflatten(2, (2, 2)) ** 2,
    "permute": lambda x: x.permute(2, 0, 1) ** 2,
    "transpose": lambda x: x.transpose(0, -1) ** 2,
    "mT": lambda x: x.mT**2,
    "movedim": lambda x: x.movedim(0, -1) ** 2,
    "unsqueeze": lambda x: x.unsqueeze(1).unsqueeze(-1) ** 2,
    "squeeze": lambda x: x[:, :1].squeeze() * x[:, :1].squeeze(1),
    "expand": lambda x: x[:, :1].expand(5, 2, 3, 4) ** 2,
    "repeat": lambda x: x.repeat(2, 1, 1, 2) ** 2,
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1) ** 2,
    "cat": lambda x: torch.cat((x, A[None].expand(2, 3, 4), x**2), -1) ** 2,
    "stack": lambda x: torch.stack((x, x.sin(), C), 1) ** 2,
    "split": lambda x: x.split((1, 3), -1)[1] * x.split(2, -1)[0][..., :1],
    "chunk": lambda x: x.chunk(2, 2)[0] * x.chunk(2, 2)[1],
    "unbind": lambda x: x.unbind(1)[0] * x.unbind(1)[2],
    "iterate": lambda x: sum(row**2 for row in x),
    "narrow": lambda x: x.narrow(1, 1, 2) ** 2,
    "select": lambda x: x.select(1, 2) * x[:, 0],
    "slice": lambda x: x[..., 1::2] ** 2,
    "index": lambda x: x[:, torch.tensor([0, 2]), 1] ** 2,
    "index_apart": lambda x: x[torch.tensor([0, 1]), :, torch.tensor([0, 2])] ** 2,
    "mask": lambda x: x[MASK] ** 2,
    "none": lambda x: x[:, None, ..., 0] ** 2,
    "index_select": lambda x: x.index_select(-1, torch.tensor([0, 0, 3])) ** 2,
    "gather": lambda x: x.gather(2, torch.tensor([0, 3, 1]).expand(2, 3, 3)) ** 2,
    "where": lambda x: torch.where(MASK, x**2, 2.0) * torch.where(MASK, A, x),
    "masked_fill": lambda x: x.masked_fill(MASK, 0.5) ** 2,
    "slice_scatter": lambda x: torch.slice_scatter(A, x[0, :, :2] ** 2, 1, 1, 3) * x,
    "select_scatter": lambda x: torch.select_scatter(x.sin(), A, 0, 1) * x,
    "index_put": lambda x: x.index_put((torch.tensor([1, 0]), torch.tensor([2, 2])), A[:2]) ** 2,
    "copy": lambda x: torch.zeros_like(x).mul(x).copy_(x[0] ** 2) * x,
    "flip": lambda x: x.flip(1, -1) * x,
    "roll": lambda x: x.roll((1, 2), (1, 2)) * x,
    "tril": lambda x: x.tril() ** 2,
    "dtype": lambda x: (x.to(torch.float64).double() ** 2).type_as(A) * torch.tensor(2.0).to(x),
    "detach": lambda x: x * x.detach() ** 2 + x.sign() + x.round().detach(),
}
MATRICES = {
    "linear": lambda x: F.linear(x, B.T, A.new_ones(5)) ** 2,
    "linear_of_weights": lambda x: F.linear(x, x[0]) ** 2,
    "matmul": lambda x: x @ x.mT @ x,
    "matmul_constants": lambda x: (A.T @ x @ B) ** 2,
    "matmul_vector": lambda x: (x @ A[0]) * (A[:, 0] @ x @ A[1])[:, None],
    "matmul_broadcast": lambda x: x[:, None] @ x.mT,
    "bmm": lambda x: torch.bmm(x, x.mT) ** 2,
    "baddbmm": lambda x: torch.baddbmm(x[:, :, :3], x, x.mT, beta=0.5, alpha=2.0),
    "addmm": lambda x: torch.addmm(x[0, :, :3], x[0], x[1].T),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x.sin()),
    "einsum_three": lambda x: torch.einsum("bij,jk,bij->bk", x, B, x.cos()),
    "einsum_implicit": lambda x: torch.einsum("bij, jk", x**2, B),
    "bilinear": lambda x: F.bilinear(x, x.sin(), tensor(2, 4, 4), tensor(2)),
}
LAYERS = {
    "group_norm": lambda x: F.group_norm(x.reshape(2, 6, 2), 3, A.flatten()[:6], A.flatten()[6:]),
    "rms_norm": lambda x: F.rms_norm(x, (4,), A[0]),
    "batch_norm": lambda x: F.batch_norm(x, A[:, 0], A[:, 1] ** 2, A[:, 2], A[:, 3]),
    "conv1d": lambda x: F.conv1d(x, tensor(6, 3, 2), tensor(6), padding=1) ** 2,
    "conv1d_unbatched": lambda x: F.conv1d(x[0], tensor(6, 3, 2), tensor(6)) ** 2,
    "conv_groups": lambda x: F.conv1d(x, tensor(6, 1, 3), stride=2, padding=1, groups=3) ** 2,
    "conv_transpose1d": lambda x: F.conv_transpose1d(x, tensor(3, 2, 2), tensor(2), stride=2) ** 2,
    "glu": lambda x: F.glu(x, -1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)) ** 2,
    "pad_value": lambda x: F.pad(x, (1, 2), value=3.0) ** 2,
    "pad_reflect": lambda x: F.pad(x, (1, 2), mode="reflect") ** 2,
    "pad_circular": lambda x: F.pad(x, (1, 2), mode="circular") ** 2,
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2) ** 2,
    "max_pool1d": lambda x: F.max_pool1d(x, 2) ** 2,
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos()),
    "attention_causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention_mask": lambda x: F.scaled_dot_product_attention(x, A, A, attn_mask=A @ A.T, scale=0.3),
    "attention_bool": lambda x: F.scaled_dot_product_attention(
        x, x, A, attn_mask=torch.eye(3, dtype=torch.bool) | (A @ A.T > 0)
    ),
}
IMAGES = {
    "conv2d": lambda x: F.conv2d(x, tensor(5, 3, 3, 3), tensor(5), padding="same") ** 2,
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, tensor(3, 2, 2, 2), stride=2) ** 2,
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2) ** 2,
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2) ** 2,
    "max_pool2d": lambda x: F.max_pool2d(x, 2) ** 2,
    "nearest": lambda x: F.interpolate(x, scale_factor=2) ** 2,
    "bilinear": lambda x: F.interpolate(x, size=(6, 5), mode="bilinear") ** 2,
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True) ** 2,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2) ** 2,
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2) ** 2,
    "unfold": lambda x: F.unfold(x, 2) ** 2,
    "fold": lambda x: F.fold(F.unfold(x, 2) ** 2, (4, 4), 2),
    "tensor_unfold": lambda x: x.unfold(2, 2, 2) ** 2,
    "dropout2d": lambda x: F.dropout2d(x, 0.5, training=False) ** 2,
    "channels_last": lambda x: F.group_norm(x.contiguous(memory_format=torch.channels_last), 3) ** 2,
    "pad2d": lambda x: F.pad(x, (1, 0, 2, 1), mode="replicate") ** 2,
    "grid": lambda x: x / math.sqrt(2),
}


def layer_norm(x, dims=(-1,)):
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + 1e-5)


def attention(query, key, value):
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1) @ value


# autograd of torch 2.13 has no higher derivatives of these operations, or (the native normalisations, celu)
# wrong ones: their references are written out
WRITTEN_OUT = {
    "layer_norm": (
        lambda x: F.layer_norm(x, (4,), A[0], A[1]),
        lambda x: layer_norm(x) * A[0] + A[1],
    ),
    "layer_norm_two": (lambda x: F.layer_norm(x, (3, 4)), lambda x: layer_norm(x, (-1, -2))),
    "instance_norm": (F.instance_norm, layer_norm),
    "batch_norm_train": (
        lambda x: F.batch_norm(x, None, None, A[:, 2], A[:, 3], training=True),
        lambda x: layer_norm(x, (0, 2)) * A[:, 2:3] + A[:, 3:4],
    ),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x), lambda x: F.relu6(3 * x + 3) / 6),
    "celu": (lambda x: F.celu(x, 0.7), lambda x: torch.where(x > 0, x, 0.7 * torch.expm1(x / 0.7))),
    "attention_grouped": (
        lambda x: F.scaled_dot_product_attention(
            x.reshape(1, 2, 3, 4), x[:1, None], x[1:, None], enable_gqa=True
        ),
        lambda x: attention(x.reshape(1, 2, 3, 4), x[:1, None], x[1:, None]),
    ),
}
VECTORS = {**POINTWISE, **ARITHMETIC, **REDUCTIONS, **SHAPES, **MATRICES, **LAYERS}


@pytest.mark.parametrize("name", VECTORS)
def test_operation(name):
    check(VECTORS[name], tensor(2, 3, 4, seed=11))


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_operation_without_a_reference_in_autograd(name):
    f, reference = WRITTEN_OUT[name]
    check(f, tensor(2, 3, 4, seed=11), reference=reference)


@pytest.mark.parametrize("name", IMAGES)
def test_operation_on_images(name):
    check(IMAGES[name], tensor(2, 3, 4, 4, seed=11))


FUSED = [
    *(POINTWISE[name] for name in ("silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "softplus")),
    lambda x: F.group_norm(x, 3, A[:, 0], A[:, 1]),
    lambda x: F.layer_norm(x, (4, 4), tensor(4, 4), tensor(4, 4)),
    lambda x: F.conv2d(x, tensor(5, 3, 3, 3), tensor(5)),
]


@pytest.mark.parametrize("name", ["native", "torch"])
def test_fused_operations_of_fastlik_and_of_pytorch(name, monkeypatch):
    monkeypatch.setenv("FASTLIK_BACKEND", name)
    x = tensor(2, 3, 4, 4, seed=11)
    for f in FUSED:
        check(f, x, order=1)
