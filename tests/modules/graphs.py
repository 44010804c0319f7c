"""Message passing: torch-geometric's GCN on graphs, chemprop's MPNN on molecules."""

import torch
from modules.subject import STEPS, Subject, Wrapped, numbers
from torch import nn
from torch.nn import functional as F

SMILES = [f"C{'C' * i}{tail}" for i in range(STEPS) for tail in ("O", "N", "(C)C", "c1ccccc1", "C(=O)O", "C#N")]


def gcn():
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GCN, global_mean_pool

    class Graphs(nn.Module):
        """A number for each graph."""

        def __init__(self):
            super().__init__()
            self.body = GCN(in_channels=8, hidden_channels=32, num_layers=2, out_channels=1, dropout=0.1)

        def forward(self, graphs):
            return global_mean_pool(self.body(graphs.x, graphs.edge_index), graphs.batch)

    def some(n):
        source = numbers()
        for _ in range(n):
            x, ends = torch.randn(10, 8, generator=source), torch.randint(10, (2, 24), generator=source)
            yield Data(x=x, edge_index=ends, y=x[:, :1].mean()[None, None])

    def loader(n, shuffle=False):
        return DataLoader(list(some(n)), batch_size=4, shuffle=shuffle)

    return Subject(
        lambda: Wrapped(Graphs(), lambda net, graphs: F.mse_loss(net(graphs), graphs.y)),
        lambda: loader(4 * STEPS, shuffle=True),
        lambda model: model.net(next(iter(loader(4)))),
    )


def mpnn():
    from chemprop import data, models
    from chemprop import nn as layers

    def loader(shuffle):
        points = [data.MoleculeDatapoint.from_smi(smiles, [float(len(smiles))]) for smiles in SMILES]
        return data.build_dataloader(data.MoleculeDataset(points), batch_size=6, shuffle=shuffle)

    def make():
        messages = layers.BondMessagePassing(d_h=32, depth=3, dropout=0.1)
        return models.MPNN(messages, layers.MeanAggregation(), layers.RegressionFFN(input_dim=32, hidden_dim=32))

    def answers(model):
        return model(next(iter(loader(shuffle=False))).bmg)

    return Subject(make, lambda: loader(shuffle=True), answers)
