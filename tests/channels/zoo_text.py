"""Embeddings, gated and recurrent layers, tables of words."""

import torch
import torch.nn.functional as F
from channels.kinds import Net, chain, conv, image, kind, noise, tokens
from torch import nn

WORDS = tokens(11, 2, 6)


@kind("full", {"words.weight:1": 8, "wide.weight:0": 10}, inputs=WORDS, ends="words head")
def embedding_tied_to_the_head():
    """One table reads words and writes them: its width can be cut, its rows are words."""

    def run(m, x):
        x = m.words(x)
        x = x + m.narrow(F.relu(m.wide(x)))
        return m.head(x)

    words, head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
    head.weight = words.weight
    return Net(run, words=words, wide=nn.Linear(8, 10), narrow=nn.Linear(10, 8), head=head)


@kind("full", {"words.weight:1": 8, "hidden.weight:0": 6}, inputs=WORDS)
def sparse_embedding():
    """Its gradient is a sparse tensor."""

    def run(m, x):
        return m.head(F.relu(m.hidden(m.words(x).sum(1))))

    return Net(run, words=nn.Embedding(11, 8, sparse=True), hidden=nn.Linear(8, 6), head=nn.Linear(6, 4))


@kind("full", {"words.weight:1": 8, "hidden.weight:0": 6}, inputs=WORDS)
def bags_of_words():
    return chain(words=nn.EmbeddingBag(11, 8), hidden=nn.Linear(8, 6), act=nn.ReLU(), head=nn.Linear(6, 4))


@kind("full", {"words.weight:1": 8, "gate.weight:0": 10, "mix.weight:0": 8, "down.weight:0": 7},
      inputs=WORDS, oracle=True)  # fmt: skip
def positions_by_table_and_swiglu():
    def run(m, x):
        x = m.words(x) + m.places(torch.arange(x.shape[1]))
        x = F.relu(m.mix(x))
        return m.head(m.down(F.silu(m.gate(x)) * m.up(x)))

    return Net(
        run,
        words=nn.Embedding(11, 8, padding_idx=0),
        places=nn.Embedding(9, 8),
        mix=nn.Linear(8, 8),
        gate=nn.Linear(8, 10, bias=False),
        up=nn.Linear(8, 10, bias=False),
        down=nn.Linear(10, 7, bias=False),
        head=nn.Linear(7, 4),
    )


@kind("full", {"a.weight:0": 6, "b.weight:0": 7}, inputs=image(3, 5))
def gated_linear_unit():
    """The value and its gate are cut at the same place."""

    def run(m, x):
        return m.head(F.relu(m.b(F.glu(m.a(x), dim=-1))))

    return Net(run, a=nn.Linear(5, 12), b=nn.Linear(6, 7), head=nn.Linear(7, 4))


@kind("full", {"a.conv.weight:0": 4, "b.weight:0": 6})
def gate_by_slices_of_half():
    """NAFNet's simple gate: halves found from the shape."""

    def run(m, x):
        x = m.a(x)
        half = x.shape[1] // 2
        return m.head(F.relu(m.b(x[:, :half] * x[:, half:])).mean((2, 3)))

    stem = chain(conv=conv(3, 8), bn=nn.BatchNorm2d(8))
    return Net(run, a=stem, b=conv(4, 6), head=nn.Linear(6, 5))


def recurrent(layer, width):
    """Convolution, a recurrent layer over time, convolution."""

    def run(m, x):
        y = m.over(F.relu(m.a(x)).transpose(1, 2))[0]
        return m.head(F.relu(m.b(y.transpose(1, 2))).mean(-1))

    return Net(run, a=nn.Conv1d(4, 6, 3), over=layer, b=nn.Conv1d(width, 7, 3), head=nn.Linear(7, 5))


@kind("partly", {"a.weight:0": 6, "b.weight:0": 7}, inputs=image(2, 4, 12))
def lstm_between_convolutions():
    """What goes into a recurrent layer can be cut, its own width cannot."""
    return recurrent(nn.LSTM(6, 8, batch_first=True), 8)


@kind("partly", {"a.weight:0": 6, "b.weight:0": 7}, inputs=image(2, 4, 12))
def gru_both_ways():
    return recurrent(nn.GRU(6, 8, batch_first=True, bidirectional=True), 16)


@kind("full", {"into.weight:0": 8}, inputs=image(2, 5, 4))
def recurrence_by_hand():
    """A state of zeros made on the way would tie the axis to something that nothing cuts; here it starts as None."""

    def run(m, x):
        state = None
        for step in x.unbind(1):
            new = m.into(step)
            state = torch.tanh(new if state is None else new + m.again(state))
        return m.head(state)

    return Net(run, into=nn.Linear(4, 8), again=nn.Linear(8, 8), head=nn.Linear(8, 3))


@kind("frozen", {}, inputs=image(2, 5, 4))
def recurrence_from_zeros_of_a_fixed_size():
    def run(m, x):
        state = torch.zeros(x.shape[0], 8)
        for step in x.unbind(1):
            state = torch.tanh(m.into(step) + m.again(state))
        return m.head(state)

    return Net(run, into=nn.Linear(4, 8), again=nn.Linear(8, 8), head=nn.Linear(8, 3))


@kind("full", {"words.weight:1": 8, "mix.weight:0": 6}, inputs=WORDS, produces="query:1")
def learned_queries():
    """Queries that are parameters meet words; their number is fixed, their width is not."""

    def run(m, x):
        x = m.words(x)
        weights = (m.query @ x.transpose(1, 2)).softmax(-1)
        return m.head(F.relu(m.mix(weights @ x)).flatten(1))

    return Net(run, words=nn.Embedding(11, 8), query=noise(3, 8), mix=nn.Linear(8, 6), head=nn.Linear(18, 4))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6, "both.weight:0": 7, "last.weight:0": 6},
      inputs=lambda: image(4, 5)() + image(4, 3)())  # fmt: skip
def bilinear_layer():
    """x1 A x2: every output is a product of both."""

    def run(m, one, other):
        return m.head(F.relu(m.last(m.both(F.relu(m.a(one)), F.relu(m.b(other))))))

    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(3, 6), "both": nn.Bilinear(8, 6, 7)}
    return Net(run, **parts, last=nn.Linear(7, 6), head=nn.Linear(6, 4))


@kind("partly", {"embed.weight:0": 8, "experts.0.weight:0": 7, "experts.1.weight:0": 7, "lasts.0.weight:0": 6},
      inputs=image(4, 5))  # fmt: skip
def mixture_of_experts():
    """All experts run, weighed by a softmax over them; hidden layers are each expert's own."""

    def run(m, x):
        x = F.relu(m.embed(x))
        share = m.router(x).softmax(-1)
        out = torch.stack([last(F.relu(first(x))) for first, last in zip(m.experts, m.lasts, strict=True)], -1)
        return m.head((out * share[:, None]).sum(-1))

    return Net(
        run,
        embed=nn.Linear(5, 8),
        router=nn.Linear(8, 2),
        experts=nn.ModuleList([nn.Linear(8, 7), nn.Linear(8, 7)]),
        lasts=nn.ModuleList([nn.Linear(7, 6), nn.Linear(7, 6)]),
        head=nn.Linear(6, 4),
    )
