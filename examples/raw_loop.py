"""The engine in a plain PyTorch loop: two lines more than without it.

    python examples/raw_loop.py

Trains LeNet-300-100 at 5 % density with RigL on real MNIST for two epochs, saves and loads everything in between, and
prints the plan and the test accuracy (about 96 %).
"""

import argparse

import torch
from mnist import MNIST
from torch import nn
from torch.nn import functional as F

from lightning_sparse import RigL, Sparsifier, plan


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="train on 6,000 images only")
    torch.manual_seed(0)
    data = MNIST(limit=6000 if parser.parse_args().fast else 0)
    data.setup("fit")
    batches = data.train_dataloader()

    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    print(plan(model, 0.05, example_inputs=torch.zeros(1, 28, 28)))
    sparsifier = Sparsifier(model, RigL(every=20), 0.05, optimizers=[optimizer], total_steps=2 * len(batches))  # one

    for epoch in range(2):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # masks gradients before, weights after, and moves masks when they are due
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "masks": sparsifier.state_dict()}
        torch.save(saved, "raw_loop.pt")
        print(
            f"epoch {epoch}: loss {loss.item():.3f}, density {sparsifier.density():.4f}, {sparsifier.updates} updates"
        )

    # Going on elsewhere: everything is made as above, then loaded; the weights before the masks.
    saved = torch.load("raw_loop.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    sparsifier.load_state_dict(saved["masks"])
    sparsifier.finalize()  # two: let go; what is left is a plain model with zeros in its weights

    with torch.no_grad():
        hits = [(model(images).argmax(1) == labels).float().mean() for images, labels in data.test_dataloader()]
    live = sum(p.live for p in sparsifier.params.values())
    print(f"test accuracy {torch.stack(hits).mean():.2%}, {live:,} live weights")


if __name__ == "__main__":
    main()
