"""From training to the edge: 5 % of the weights, int8, an ONNX file that another process runs without PyTorch.

    python examples/int8_onnx.py                                   # pip install "lightning-sparse[onnx]" first
    python examples/int8_onnx.py --data fashion_mnist.npz --epochs 5

One fit of LeNet-300-100: RigL keeps 5 % of the weights, QuantizeSparse calibrates int8 when it ends. What comes out is
written as a compressed checkpoint and as an ONNX file, which ONNX Runtime then answers from in a process of its own.
Prints bytes and accuracy of each. Takes about a minute on two cores; every number is of this run.
"""

import argparse
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from mnist import DATA, MNIST, LeNet

from lightning_sparse import MaskUpdater, QuantizeSparse, RigL, export

EDGE = """
import sys
import numpy as np
import onnxruntime
raw, session = np.load(sys.argv[2]), onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = ((raw["x_test"].astype("float32") / 255 - 0.1307) / 0.3081).reshape(-1, 28, 28)
(scores,) = session.run(None, {session.get_inputs()[0].name: images})
assert "torch" not in sys.modules
print(f"{(scores.argmax(1) == raw['y_test']).mean():.2%}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="an .npz like MNIST's")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--bits", type=int, default=8, help="4 and fewer train quantized for the last quarter")
    parser.add_argument("--out", type=Path, default=Path("logs") / "int8_onnx")
    parser.add_argument("--fast", action="store_true", help="one epoch on 6,000 images: only shows that it runs")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval).*")
    seed_everything(0, verbose=False)

    model, data = LeNet(), MNIST(args.data, limit=6000 if args.fast else 0)
    updater, quantize = MaskUpdater(RigL(every=25), density=args.density), QuantizeSparse(args.bits)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    epochs = 1 if args.fast else args.epochs
    trainer = Trainer(max_epochs=epochs, callbacks=[updater, quantize], num_sanity_val_steps=0, **quiet)
    trainer.fit(model, data)
    (quantized,) = trainer.test(model, data, verbose=False)  # with the callback: as its integers compute
    (plain,) = Trainer(**quiet).test(model, data, verbose=False)

    args.out.mkdir(parents=True, exist_ok=True)
    images = data.sets["test"][:256][0]
    dense, packed, onnx = args.out / "dense.pt", args.out / "net.packed", args.out / "net.onnx"
    torch.save(model.net.state_dict(), dense)
    stored = export.save_packed(model, packed, quantize.quantization.codes(model))
    written = export.to_onnx(model.net, onnx, images)
    command = [sys.executable, "-c", EDGE, str(onnx), args.data]
    edge = subprocess.run(command, capture_output=True, text=True, check=True)

    print(f"\n{'':34}{'bytes':>12}{'accuracy':>12}")
    size = dense.stat().st_size
    for name, count, accuracy in [
        ("float weights, as torch saves them", size, f"{plain['accuracy']:.2%}"),
        (f"{args.bits}-bit, simulated in PyTorch", "", f"{quantized['accuracy']:.2%}"),
        ("compressed checkpoint", stored.bytes, ""),
        ("ONNX Runtime, its own process", written.size, edge.stdout.strip()),
    ]:
        print(f"{name:34}{count if count == '' else f'{count:,}':>12}{accuracy:>12}")
    print(f"\nCompressed {size / stored.bytes:.0f} times. The ONNX file is larger: it holds the zeros, one byte each.")


if __name__ == "__main__":
    main()
