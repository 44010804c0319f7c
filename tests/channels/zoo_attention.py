"""Attention in its many ways of writing, on sequences of vectors: [batch, length, 5]."""

import math

import torch
import torch.nn.functional as F
from channels.kinds import Net, chain, image, kind, noise
from torch import nn

SEQUENCE = image(2, 6, 5)


def attended(run, **parts):
    """Linear embedding, a residual branch `run`, head."""

    def whole(m, x):
        x = m.embed(x)
        return m.head(x + m.out(run(m, x)))

    return Net(whole, embed=nn.Linear(5, 12), out=nn.Linear(12, 12), head=nn.Linear(12, 4), **parts)


def projections(width=12, keys=None):
    return {"q": nn.Linear(12, width), "k": nn.Linear(12, keys or width), "v": nn.Linear(12, keys or width)}


EACH = {"embed.weight:0": 12, "q.weight:0": 4, "v.weight:0": 4}


@kind("full", EACH, inputs=SEQUENCE)
def attention_by_einsum():
    """Three heads of 4: a channel of q and k is the same place of each head, one of v likewise."""

    def run(m, x):
        q, k, v = (part(x).unflatten(-1, (3, -1)) for part in (m.q, m.k, m.v))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).mul(0.5).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)

    return attended(run, **projections())


@kind("full", EACH, inputs=SEQUENCE, lossy="q.weight:0")
def attention_by_sdpa():
    """The scale follows the size of a head: to cut q and k is no identity."""

    def run(m, x):
        q, k, v = (part(x).view(2, 6, 3, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, -1)

    return attended(run, **projections())


@kind("full", EACH, inputs=SEQUENCE, lossy="q.weight:0")
def attention_causal_by_matmul():
    """The scale is read off the tensor by Python, out of sight of any trace."""

    def run(m, x):
        q, k, v = (part(x).view(2, 6, 3, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
        weights = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        weights = weights.masked_fill(m.future, float("-inf")).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(2, 6, -1)

    return attended(run, **projections(), future=torch.ones(6, 6, dtype=torch.bool).triu(1))


@kind("full", {"embed.weight:0": 12, "qkv.weight:0": 4}, inputs=SEQUENCE)
def attention_fused_by_chunk():
    """A channel is one place of every head, of q, k and v alike: nine rows."""

    def run(m, x):
        q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
        return ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    return attended(run, qkv=nn.Linear(12, 36))


@kind("full", {"embed.weight:0": 12, "qkv.weight:0": 4}, inputs=SEQUENCE)
def attention_fused_by_view():
    def run(m, x):
        q, k, v = m.qkv(x).reshape(2, 6, 3, 3, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, -1)

    return attended(run, qkv=nn.Linear(12, 36))


@kind("full", {"embed.weight:0": 12, "q.weight:0": 3}, inputs=SEQUENCE)
def attention_with_a_fixed_size_of_head():
    """Whole heads go: the size of a head is written in the code, their number is not."""

    def run(m, x):
        q, k, v = (part(x).view(2, 6, -1, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
        return ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, -1)

    return attended(run, **projections())


@kind("partly", {"embed.weight:0": 12}, inputs=SEQUENCE)
def attention_with_both_sizes_fixed():
    def run(m, x):
        q, k, v = m.qkv(x).reshape(2, 6, 3, 3, 4).permute(2, 0, 3, 1, 4)
        return ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 12)

    return attended(run, qkv=nn.Linear(12, 36))


@kind("full", EACH | {"thin.weight:0": 12}, inputs=SEQUENCE)
def attention_with_grouped_queries():
    """Four heads of queries share two of keys and values; all heads are of size 4."""

    def run(m, x):
        q, k, v = (part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part, heads in ((m.q, 4), (m.k, 2), (m.v, 2)))
        k, v = k.repeat_interleave(2, 1), v[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)
        return m.thin(((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return attended(run, **projections(16, 8), thin=nn.Linear(16, 12))


def turned(x):
    one, other = x.chunk(2, -1)
    return torch.cat([-other, one], -1)


@kind("full", {"embed.weight:0": 12, "q.weight:0": 2, "v.weight:0": 4}, inputs=SEQUENCE)
def attention_with_rotary_positions():
    """Halves of a head turn together, by tables that are cut along."""
    angles = torch.arange(6.0)[:, None] / torch.tensor([1.0, 10.0]).repeat(2)

    def run(m, x):
        q, k, v = (part(x).view(2, 6, 3, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
        q, k = (part * m.cos + turned(part) * m.sin for part in (q, k))
        return ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, -1)

    return attended(run, **projections(), cos=angles.cos(), sin=angles.sin())


@kind("partly", {"embed.weight:0": 12, "v.weight:0": 4}, inputs=SEQUENCE)
def attention_with_positions_made_on_the_way():
    """The table is made in the forward pass, for four places, whatever is cut."""

    def run(m, x):
        angles = torch.arange(6.0)[:, None] / torch.tensor([1.0, 10.0]).repeat(2)
        q, k, v = (part(x).view(2, 6, 3, -1).transpose(1, 2) for part in (m.q, m.k, m.v))
        q, k = (part * angles.cos() + turned(part) * angles.sin() for part in (q, k))
        return ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, -1)

    return attended(run, **projections())


@kind("partly", {"feed.weight:0": 9}, inputs=SEQUENCE)
def attention_of_torch():
    def run(m, x):
        x = m.embed(x)
        x = x + m.attention(x, x, x, need_weights=False)[0]
        return m.head(F.relu(m.feed(x)))

    return Net(
        run,
        embed=nn.Linear(5, 12),
        attention=nn.MultiheadAttention(12, 3, batch_first=True),
        feed=nn.Linear(12, 9),
        head=nn.Linear(9, 4),
    )


@kind("partly", {"layer.linear1.weight:0": 10}, inputs=SEQUENCE)
def encoder_of_torch():
    layer = nn.TransformerEncoderLayer(12, 3, 10, batch_first=True)
    return chain(embed=nn.Linear(5, 12), layer=layer, head=nn.Linear(12, 4))


@kind(
    "full",
    {"embed.weight:0": 12, "memory.weight:0": 7, "q.weight:0": 4, "v.weight:0": 4},
    inputs=lambda: SEQUENCE() + image(2, 9, 3)(),
)
def attention_to_another_sequence():
    def run(m, x, other):
        x, other = m.embed(x), m.memory(other)
        q, k, v = (part(y).unflatten(-1, (3, -1)).transpose(1, 2) for part, y in ((m.q, x), (m.k, other), (m.v, other)))
        y = ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return m.head(x + m.out(y))

    parts = {"embed": nn.Linear(5, 12), "memory": nn.Linear(3, 7), "k": nn.Linear(7, 12), "v": nn.Linear(7, 12)}
    return Net(run, **parts, q=nn.Linear(12, 12), out=nn.Linear(12, 12), head=nn.Linear(12, 4))


@kind("full", {"embed.weight:0": 12, "v.weight:0": 3}, inputs=SEQUENCE)
def attention_with_a_bias_per_head():
    """A table of positions, a column a head, ties heads; so heads go whole, with their columns."""

    def run(m, x):
        bias = m.table[m.where.view(-1)].view(6, 6, -1).permute(2, 0, 1)
        q, k, v = (part(x).view(2, 6, -1, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
        weights = (q @ k.transpose(-2, -1) * 0.5 + bias[None]).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(2, 6, -1)

    where = torch.arange(6)[:, None] - torch.arange(6) + 5
    return attended(run, **projections(), table=noise(11, 3), where=where)
