"""Transformers and their relatives on pictures."""

import torch
import torch.nn.functional as F
from channels.kinds import Net, conv, kind, noise
from torch import nn


@kind("full", {"embed.weight:0": 8, "tokens1.weight:0": 10, "wide.weight:0": 9}, ends="head tokens2", consumers=True)
def mixer():
    """Positions are mixed by layers of their own, with a bias that reaches every channel."""

    def run(m, x):
        x = m.embed(x).flatten(2).transpose(1, 2)
        x = x + m.tokens2(F.gelu(m.tokens1(x.transpose(1, 2)))).transpose(1, 2)
        x = x + m.narrow(F.gelu(m.wide(x)))
        return m.head(x.mean(1))

    return Net(
        run,
        embed=nn.Conv2d(3, 8, 2, 2),
        tokens1=nn.Linear(16, 10),
        tokens2=nn.Linear(10, 16),
        wide=nn.Linear(8, 9),
        narrow=nn.Linear(9, 8),
        head=nn.Linear(8, 5),
    )


@kind("full", {"embed.weight:0": 12, "block.qkv.weight:0": 4, "block.wide.weight:0": 10},
      lossy="embed.weight:0 block.qkv.weight:0", produces="token:2 positions:2")  # fmt: skip
def vision_transformer():
    """Class token, positions, a block with its norms before."""

    def block(m, x):
        batch, length, _ = x.shape
        qkv = m.qkv(m.norm1(x)).reshape(batch, length, 3, m.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + m.project(y.transpose(1, 2).reshape(batch, length, -1))
        return x + m.narrow(F.gelu(m.wide(m.norm2(x))))

    def run(m, x):
        x = m.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.positions
        return m.head(m.norm(m.block(x))[:, 0])

    inner = Net(
        block,
        norm1=nn.LayerNorm(12),
        qkv=nn.Linear(12, 36),
        project=nn.Linear(12, 12),
        norm2=nn.LayerNorm(12),
        wide=nn.Linear(12, 10),
        narrow=nn.Linear(10, 12),
    )
    inner.heads = 3
    return Net(
        run,
        embed=nn.Conv2d(3, 12, 4, 4),
        token=noise(1, 1, 12),
        positions=noise(1, 5, 12),
        block=inner,
        norm=nn.LayerNorm(12),
        head=nn.Linear(12, 5),
    )


@kind("full", {"stem.weight:0": 8, "q.weight:0": 4, "v.weight:0": 6})
def attention_over_pictures():
    """Non-local block: 1x1 convolutions, positions flattened, a learnable strength of the branch."""

    def run(m, x):
        x = m.stem(x)
        q, k, v = (part(x).flatten(2) for part in (m.q, m.k, m.v))
        y = v @ (q.transpose(1, 2) @ k).mul(0.1).softmax(-1).transpose(1, 2)
        x = x + m.gamma * m.out(y.view(2, -1, 8, 8))
        return m.head(x.mean((2, 3)))

    parts = {"q": conv(8, 4, 1), "k": conv(8, 4, 1), "v": conv(8, 6, 1), "out": conv(6, 8, 1)}
    return Net(run, stem=conv(3, 8), gamma=noise(1), head=nn.Linear(8, 5), **parts)
