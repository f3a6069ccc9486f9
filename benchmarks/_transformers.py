"""Small networks of Hugging Face ``transformers``, from configurations alone: nothing is downloaded."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

PIXELS = 64
WORDS, LENGTH = 99, 12
_DEEP = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT = _DEEP | {"vocab_size": WORDS, "max_position_embeddings": 32}
_VIT = _DEEP | {"image_size": PIXELS, "patch_size": 16}
_STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}

NETWORKS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": _VIT,
    "CLIPVisionModel": _VIT,
    "SwinForImageClassification": {
        "image_size": PIXELS, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    },
    "ConvNextForImageClassification": _STAGES,
    "MobileNetV2ForImageClassification": {"image_size": PIXELS, "depth_multiplier": 0.35},
    "MobileViTForImageClassification": {
        "image_size": PIXELS, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48],
    },
    "SegformerForSemanticSegmentation": {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16,
    },
    "ResNetForImageClassification": _STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "RegNetForImageClassification": _STAGES | {"embedding_size": 8, "groups_width": 8},
    "LevitForImageClassification": {
        "image_size": PIXELS, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]],
    },
    "PvtForImageClassification": {"image_size": PIXELS, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 40, 64]},
    "EfficientNetForImageClassification": {
        "image_size": PIXELS, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320,
    },
    "BertModel": _TEXT,
    "DistilBertModel": {"vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "AlbertModel": _TEXT | {"embedding_size": 16, "hidden_act": "gelu"},
    "GPT2Model": {
        "vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "T5EncoderModel": {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "WhisperEncoder": {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "num_mel_bins": 8,
        "max_source_positions": 20,
    },
    "Wav2Vec2Model": _DEEP | {
        "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
    },
}  # fmt: skip
"""Class, and options of its configuration."""

_SHAPES = {"WhisperEncoder": (8, 40), "Wav2Vec2Model": (800,)}
"""Of one sample, where it is neither an image nor a text."""


def transformer(name: str) -> nn.Module:
    """In eval mode, random weights."""
    home = transformers.models.whisper.modeling_whisper if name == "WhisperEncoder" else transformers
    made = getattr(home, name)
    model: nn.Module = made(made.config_class(**NETWORKS[name])).eval()
    return model


def shape_of(name: str) -> tuple[int, ...]:
    """Of a batch of one."""
    if "vocab_size" in NETWORKS[name]:
        return (1, LENGTH)
    return (1, *_SHAPES.get(name, (3, PIXELS, PIXELS)))


def drawn(name: str, batch: int) -> Tensor:
    """An input: words where the network has a vocabulary, else noise."""
    shape = (batch, *shape_of(name)[1:])
    return torch.randint(2, WORDS, shape) if "vocab_size" in NETWORKS[name] else torch.randn(shape)
