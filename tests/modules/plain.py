"""What people write themselves: a GAN with manual optimization, a recommender with large embeddings."""

import torch
from lightning.pytorch import LightningModule
from modules.subject import STEPS, Subject, Wrapped, numbers, shuffled
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

USERS, ITEMS = 4000, 3000


class Gan(LightningModule):
    """Two networks against each other, each with its optimizer, stepped by hand."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        up, down = {"kernel_size": 4, "stride": 2, "padding": 1}, {"kernel_size": 4, "stride": 2, "padding": 1}
        self.maker = nn.Sequential(
            nn.Linear(8, 16 * 2 * 2), nn.Unflatten(1, (16, 2, 2)),
            nn.ConvTranspose2d(16, 8, **up), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, **up), nn.Tanh(),
        )  # fmt: skip
        self.judge = nn.Sequential(
            nn.Conv2d(1, 8, **down), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Conv2d(8, 16, **down), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(64, 1),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        makes, judges = self.optimizers()
        real = batch[0]
        fake = self.maker(torch.randn(len(real), 8))
        self._improve(judges, F.softplus(-self.judge(real)).mean() + F.softplus(self.judge(fake.detach())).mean())
        self._improve(makes, F.softplus(-self.judge(fake)).mean())

    def _improve(self, optimizer, loss):
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.9)) for net in (self.maker, self.judge)]


def gan():
    def answers(model):
        return model.judge(model.maker(torch.randn(4, 8, generator=numbers())))

    return Subject(Gan, lambda: shuffled(TensorDataset(torch.randn(8 * STEPS, 1, 8, 8, generator=numbers()))), answers)


class Recommender(nn.Module):
    """How much a user likes an item."""

    def __init__(self, sparse=False):
        super().__init__()
        self.user_embedding, self.item_embedding = (nn.Embedding(n, 16, sparse=sparse) for n in (USERS, ITEMS))
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, users, items):
        return self.head(torch.cat([self.user_embedding(users), self.item_embedding(items)], 1)).squeeze(1)


def ratings():
    """Made-up users, items and ratings."""
    users, items = (torch.randint(n, (64 * STEPS,), generator=numbers(n)) for n in (USERS, ITEMS))
    return TensorDataset(users, items, ((users + items) % 5).float())


def recommender():
    return Subject(
        lambda: Wrapped(Recommender(), lambda net, batch: F.mse_loss(net(*batch[:2]), batch[2])),
        lambda: shuffled(ratings()),
        lambda model: model.net(torch.arange(8), torch.arange(8)),
    )
