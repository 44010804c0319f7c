"""The engine under Lightning Fabric: your loop, Fabric's devices and precision.

    python examples/fabric.py

Trains LeNet-300-100 at 5 % density with SET in bfloat16 on real MNIST for two epochs and prints the test accuracy
(about 95 %).
"""

import argparse

import torch
from lightning.fabric import Fabric
from mnist import MNIST
from torch import nn
from torch.nn import functional as F

from lightning_sparse import SET, Sparsifier


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="train on 6,000 images only")
    fast = parser.parse_args().fast
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.seed_everything(0, verbose=False)
    data = MNIST(limit=6000 if fast else 0)
    data.setup("fit")

    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model, optimizer = fabric.setup(net, optimizer)  # first: it moves the weights to their device
    batches = fabric.setup_dataloaders(data.train_dataloader())
    sparsifier = Sparsifier(net, SET(every=20), 0.05, optimizers=[optimizer], total_steps=2 * len(batches))

    for epoch in range(2):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {loss.item():.3f}, density {sparsifier.density():.4f}")

    sparsifier.finalize()
    with torch.no_grad():
        hits = [(model(images).argmax(1) == labels).float().mean() for images, labels in data.test_dataloader()]
    fabric.print(f"test accuracy {torch.stack(hits).mean():.2%}")


if __name__ == "__main__":
    main()
