"""Models of transformers from configurations, tiny, with random weights; nothing is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from channels.kinds import Kind
from torch import nn

BODY = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 40}
IMAGE = {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 12], "depths": [1, 2], "embedding_size": 8}
CACHE = {"use_cache": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": 50}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A family of transformers.

    Attributes:
        name: of the class of the model.
        config: of the class of its configuration.
        settings: of the configuration.
        free: axes of layers that must be prunable, with the number of channels; of attention whole heads.
        atoms: how many axes there are.
    """

    name: str
    config: str
    settings: dict[str, Any]
    free: dict[str, int]
    atoms: int

    def make(self) -> nn.Module:
        """The model, whose vectors are away from 0 and 1 and whose matrices are large enough to matter."""
        import transformers

        model = getattr(transformers, self.name)(getattr(transformers, self.config)(**self.settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and not name.endswith(("weight", "bias")):
                    parameter.copy_(torch.rand_like(parameter) + 0.5)
                elif parameter.dim() == 2 and min(parameter.shape) > 1:
                    nn.init.xavier_normal_(parameter)
        return model

    def inputs(self) -> dict[str, Any]:
        """Words or noise."""
        generator = torch.Generator().manual_seed(1)
        if "vocab_size" in self.settings:
            return {"input_ids": torch.randint(50, (2, 7), generator=generator)}
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}

    def run(self, model: nn.Module) -> Callable[[], Any]:
        """A forward pass."""
        return lambda: model(**self.inputs())

    def kind(self) -> Kind:
        """As those of the zoo."""
        return Kind(self.name, self.make, lambda: (), "partly")


ARCHITECTURES = (
    Architecture(
        "ResNetForImageClassification",
        "ResNetConfig",
        {**STAGES, "layer_type": "bottleneck"},
        {
            "resnet.embedder.embedder.convolution.weight:0": 8,
            "resnet.encoder.stages.1.layers.0.layer.2.convolution.weight:0": 12,
        },
        8,
    ),
    Architecture(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": 32},
        {
            "mobilenet_v2.layer.0.expand_1x1.convolution.weight:0": 48,
            "mobilenet_v2.layer.5.reduce_1x1.convolution.weight:0": 16,
        },
        25,
    ),
    Architecture(
        "RegNetForImageClassification",
        "RegNetConfig",
        {**STAGES, "groups_width": 4},
        {
            "regnet.encoder.stages.1.layers.0.layer.1.convolution.weight:0": 4,
            "regnet.encoder.stages.1.layers.1.layer.2.attention.0.weight:0": 3,
        },
        12,
    ),
    Architecture(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 12], "depths": [1, 2], "num_stages": 2},
        {"convnext.embeddings.patch_embeddings.weight:0": 8, "convnext.encoder.stages.1.layers.1.pwconv1.weight:0": 48},
        5,
    ),
    Architecture(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 1.0,
            "hidden_dim": 320,
            "kernel_sizes": [3, 5],
            "in_channels": [32, 16],
            "out_channels": [16, 24],
            "strides": [1, 2],
            "num_block_repeats": [1, 2],
            "expand_ratios": [1, 3],
            "depthwise_padding": [],
        },
        {
            "efficientnet.encoder.blocks.2.expansion.expand_conv.weight:0": 24,
            "efficientnet.encoder.top_conv.weight:0": 320,
        },
        9,
    ),
    Architecture(
        "ViTForImageClassification",
        "ViTConfig",
        {**BODY, **IMAGE},
        {
            "vit.embeddings.patch_embeddings.projection.weight:0": 24,
            "vit.layers.1.attention.q_proj.weight:0": 3,
            "vit.layers.0.mlp.fc1.weight:0": 40,
        },
        5,
    ),
    Architecture(
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        {
            "swin.embeddings.patch_embeddings.projection.weight:0": 12,
            "swin.encoder.layers.1.blocks.0.attention.q_proj.weight:0": 4,
            "swin.encoder.layers.0.blocks.1.mlp.fc1.weight:0": 48,
        },
        10,
    ),
    Architecture(
        "SegformerForImageClassification",
        "SegformerConfig",
        {
            "depths": [1, 1, 1, 1],
            "sr_ratios": [4, 2, 1, 1],
            "hidden_sizes": [8, 12, 12, 16],
            "num_attention_heads": [1, 2, 3, 4],
            "mlp_ratios": [2, 2, 2, 2],
        },
        {
            "segformer.stages.2.patch_embeddings.proj.weight:0": 12,
            "segformer.stages.1.blocks.0.attention.q_proj.weight:0": 2,
            "segformer.stages.0.blocks.0.mlp.fc1.weight:0": 16,
        },
        8,
    ),
    Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        {**BODY, **CACHE},
        {
            "bert.embeddings.word_embeddings.weight:1": 24,
            "bert.encoder.layer.0.attention.self.query.weight:0": 3,
            "bert.pooler.dense.weight:0": 24,
        },
        6,
    ),
    Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        {**CACHE, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3},
        {"transformer.wte.weight:1": 24, "transformer.h.1.mlp.c_fc.weight:1": 96},
        3,
    ),
    Architecture(
        "LlamaForCausalLM",
        "LlamaConfig",
        {**BODY, **CACHE, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 16},
        {
            "model.embed_tokens.weight:1": 24,
            "model.layers.0.self_attn.k_proj.weight:0": 2,
            "model.layers.1.mlp.up_proj.weight:0": 40,
        },
        5,
    ),
    Architecture(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {**BODY, **IMAGE},
        {
            "dinov2.embeddings.patch_embeddings.projection.weight:0": 24,
            "dinov2.encoder.layer.1.attention.q_proj.weight:0": 3,
            "dinov2.encoder.layer.0.mlp.fc1.weight:0": 96,
        },
        5,
    ),
)
