"""Other people's modules, each with the data it trains on. Nothing is imported before a case is run."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

ANYWHERE, EPOCH_ENDS = 8, 12  # after which step a run is resumed: in the middle of the second epoch, or at its end


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained.

    Attributes:
        name: of the case, and of the function that makes its :class:`modules.subject.Subject`.
        package: whose model it is, as it is called on the index.
        model: what it is, for the page.
        file: the module of this folder that knows how to build it.
        include: globs, where the default would choose other weights.
        resume: the step of the checkpoint that a second run goes on from.
        plain: whether the package puts only plain things into its checkpoints, so that they load with weights_only.
    """

    name: str
    package: str
    model: str
    file: str
    include: tuple[str, ...] | None = None
    resume: int = ANYWHERE
    plain: bool = True

    def subject(self) -> Any:
        """What is trained, made anew."""
        return partial(getattr(import_module(f"modules.{self.file}"), self.name))()


CASES = (
    Case("timm_resnet", "timm", "`test_resnet`", "vision"),
    Case("timm_vit", "timm", "`test_vit`", "vision"),
    Case("unet", "segmentation-models-pytorch", "`Unet` with timm's `test_resnet` as its encoder", "vision"),
    Case("bert", "transformers", "`BertForSequenceClassification`, from a config", "text"),
    Case("gpt2", "transformers", "`GPT2LMHeadModel`, from a config", "text"),
    Case("lstm", "torch", "LSTM language model, two layers", "text"),
    Case("gcn", "torch-geometric", "`GCN`, two layers, on batches of graphs", "graphs", None, EPOCH_ENDS),
    Case("mpnn", "chemprop", "`MPNN`, bond messages", "graphs", None, EPOCH_ENDS, False),
    Case("tft", "pytorch-forecasting", "`TemporalFusionTransformer`", "tables", None, EPOCH_ENDS, False),
    Case("scvi", "scvi-tools", "`SCVI`, by its own `train`", "tables", None, EPOCH_ENDS),
    Case("gan", "torch", "GAN, manual optimization, two optimizers", "plain"),
    Case("recommender", "torch", "recommender, two embeddings of 4,000 and 3,000 rows", "plain", ("*embedding*",)),
)
