"""Networks for text: BERT and GPT-2 of transformers, built from a config, and an LSTM."""

import torch
from modules.subject import STEPS, Subject, Wrapped, numbers, shuffled
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

TEXT = (
    "a weight that is masked is zero in every pass. a weight that lives is trained as before. "
    "after some steps the smallest of the living die, and those with the largest slope are born. "
) * 6
LETTERS = sorted(set(TEXT))


def _lines(length=16):
    """The text, cut into lines of numbers."""
    codes = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    return codes[: 8 * STEPS * length].view(-1, length)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    def make():
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        net = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes))
        return Wrapped(net, lambda net, batch: net(input_ids=batch[0], labels=batch[1]).loss)

    def data():
        words = torch.randint(50, (8 * STEPS, 12), generator=numbers())
        return shuffled(TensorDataset(words, (words.sum(1) > 294).long()))

    return Subject(make, data, lambda model: model.net(input_ids=torch.arange(24).view(2, 12)).logits)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    def make():
        size = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        net = GPT2LMHeadModel(GPT2Config(vocab_size=len(LETTERS), **size))
        return Wrapped(net, lambda net, batch: net(input_ids=batch[0], labels=batch[0]).loss)

    return Subject(
        make, lambda: shuffled(TensorDataset(_lines())), lambda model: model.net(input_ids=_lines()[:2]).logits
    )


class Writer(nn.Module):
    """Guesses the next letter."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), 16)
        self.memory = nn.LSTM(16, 32, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(32, len(LETTERS))

    def forward(self, letters):
        return self.head(self.memory(self.letters(letters))[0])


def lstm():
    def loss(net, batch):
        return F.cross_entropy(net(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    return Subject(
        lambda: Wrapped(Writer(), loss),
        lambda: shuffled(TensorDataset(_lines())),
        lambda model: model.net(_lines()[:2]),
    )
