"""Small networks in the styles of the field, written as their authors write them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

DOUBLE = torch.float64


def randomised(net, scale=0.3, seed=0):
    """Weights away from their zero initialisations, float64, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net.double().eval().requires_grad_(False)


class FourierTime(nn.Module):
    """Random Fourier features as a complex number, a buffer, and a shared layer."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2))
        self.dense = nn.Linear(width, width)

    def forward(self, time):
        turn = torch.exp(2j * math.pi * time[:, None] * self.frequencies)
        features = torch.view_as_real(turn).flatten(1)
        return self.dense(F.silu(self.dense(features)))


class NCSNpp(nn.Module):
    """Song et al. 2021: GroupNorm, biases from time, FIR resampling, attention by einsum, scaled skips."""

    def __init__(self, channels=2, width=8):
        super().__init__()
        self.time = FourierTime(width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(min(width // 4, 32), width, eps=1e-6) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.bias = nn.Linear(width, width)
        self.qkv = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.merge = nn.Conv2d(2 * width, width, 1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        kernel = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("fir", (kernel[:, None] * kernel / 64)[None, None].repeat(width, 1, 1, 1))
        self.act = nn.SiLU()

    def block(self, x, embedding, i):
        h = self.act(self.norms[i](x))
        h = self.convs[i](h)
        h += self.bias(self.act(embedding))[:, :, None, None]
        return (x + F.dropout(h, 0.1, self.training)) / math.sqrt(2.0)

    def attend(self, x):
        h = self.norms[3](x)
        q, k, v = (layer(h) for layer in self.qkv[:3])
        weights = torch.einsum("bchw,bcij->bhwij", q, k) * (int(x.shape[1]) ** (-0.5))
        weights = torch.reshape(weights, (*weights.shape[:3], -1))
        weights = F.softmax(weights, dim=-1).reshape(x.shape[0], *x.shape[2:], *x.shape[2:])
        h = torch.einsum("bhwij,bcij->bchw", weights, v)
        return (x + self.qkv[3](h)) / math.sqrt(2.0)

    def forward(self, x, time):
        embedding = self.time(torch.log(time))
        h = self.stem(2 * x - 1.0)
        skip = self.block(h, embedding, 0)
        low = F.conv2d(F.pad(skip, (1, 1, 1, 1)), self.fir, stride=2, groups=self.fir.shape[0])
        low = self.attend(self.block(low, embedding, 1))
        up = F.conv_transpose2d(low, 4 * self.fir, stride=2, padding=1, groups=self.fir.shape[0])
        h = self.merge(torch.cat([up, skip], dim=1))
        h = self.block(h, embedding, 2)
        return self.out(h) / time.view(-1, 1, 1, 1)


class GuidedDiffusion(nn.Module):
    """Dhariwal and Nichol 2021: norms in float32 cast back, scale-shift norm, interleaved qkv, pooling."""

    def __init__(self, channels=2, width=8, classes=3):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes, width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(2, width) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.film = nn.Linear(width, 2 * width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj = nn.Conv1d(width, width, 1)
        self.out = nn.Sequential(nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, 2 * channels, 3, padding=1))
        self.heads, self.width = 2, width

    def timestep(self, t):
        half = self.width // 2
        angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, dtype=t.dtype) / half)[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)

    def attend(self, x):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norms[2](x).type(x.dtype))
        q, k, v = qkv.chunk(3, dim=1)
        scale = 1 / math.sqrt(math.sqrt(c // self.heads))
        shape = (b * self.heads, c // self.heads, -1)
        weight = torch.einsum("bct,bcs->bts", (q * scale).view(shape), (k * scale).view(shape))
        weight = torch.softmax(weight.to(x.dtype), dim=-1)
        a = torch.einsum("bts,bcs->bct", weight, v.reshape(shape)).reshape(b, -1, x.shape[-1])
        return (x + self.proj(a)).reshape(b, c, *spatial)

    def forward(self, x, timesteps, y=None):
        embedding = self.embed(self.timestep(timesteps))
        if y is not None:
            assert y.shape == (x.shape[0],)
            embedding = embedding + self.label(y)
        h = self.stem(x.type(embedding.dtype))
        low = F.avg_pool2d(h, kernel_size=2, stride=2)
        low = self.convs[0](F.silu(self.norms[0](low)))
        scale, shift = torch.chunk(self.film(F.silu(embedding))[..., None, None], 2, dim=1)
        low = self.attend(self.norms[1](low) * (1 + scale) + shift)
        h = h + F.interpolate(low, scale_factor=2, mode="nearest")
        output = self.out(self.convs[1](h))
        noise, _ = torch.split(output, x.shape[1], dim=1)
        return noise


class DiTBlock(nn.Module):
    """Peebles and Xie 2023: adaLN-zero."""

    def __init__(self, width, attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        h = self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1)
        x = x + gate1.unsqueeze(1) * self.attention(h)
        h = self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1)
        return x + gate2.unsqueeze(1) * self.mlp(h)


class FusedAttention(nn.Module):
    """Through F.scaled_dot_product_attention, with normalised queries and keys."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class WrittenAttention(FusedAttention):
    """The same, by hand."""

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class ModuleAttention(nn.Module):
    """Through nn.MultiheadAttention."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class WeightedAttention(ModuleAttention):
    """nn.MultiheadAttention that returns its weights, sequence first."""

    def __init__(self, width, heads=2):
        super().__init__(width, heads)
        self.attention = nn.MultiheadAttention(width, heads)

    def forward(self, x):
        x = x.transpose(0, 1)
        output, weights = self.attention(x, x, x)
        return (output * weights.sum(-1).mean()).transpose(0, 1)


class DiT(nn.Module):
    def __init__(self, attention=FusedAttention, channels=2, width=8, size=4):
        super().__init__()
        self.patch = nn.Conv2d(channels, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, (size // 2) ** 2, width))
        self.time = FourierTime(width)
        self.blocks = nn.ModuleList(DiTBlock(width, attention) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 4 * channels)
        self.channels = channels

    def forward(self, x, time):
        h = self.patch(x).flatten(2).transpose(1, 2) + self.position
        c = self.time(time)
        for block in self.blocks:
            h = block(h, c)
        h = self.out(self.norm(h))
        side = int(h.shape[1] ** 0.5)
        h = h.reshape(h.shape[0], side, side, 2, 2, self.channels)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(x.shape)


class Transformer(nn.Module):
    """PyTorch's own encoder layer on coordinates as tokens."""

    def __init__(self, width=8, norm_first=True):
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 16, dropout=0.1, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.out = nn.Linear(width, 1)

    def forward(self, x, time):
        h = self.embed(x[..., None]) + time[:, None, None]
        return self.out(self.layer(h)).squeeze(-1)


class Branching(nn.Module):
    """Data-dependent control flow, which no graph captures; writes in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x, time):
        h = self.layer(x)
        for _ in range(2 if h.sum() > 0 else 3):
            h = torch.tanh(self.layer(h))
        h = h.clone()
        h[:, 1:3] *= x[:, :2]
        h.mul_(time[:, None]).add_(x)
        h[:, 0] = h[:, 4]
        return h
