"""A tiny random base of Quill, from the real classes."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<unk>", *(chr(c) for c in range(33, 127))]
    letters = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", unk_token="<unk>", padding_side="left", model_max_length=16)


def quill(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tokenizer()
    text = GlmConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    transformer = CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=16, time_embed_dim=8,
        condition_dim=4, pos_embed_max_size=16, sample_size=16,
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    )  # fmt: skip
    CogView4Pipeline(
        tokenizer=words, text_encoder=GlmModel(text), vae=vae, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
    ).save_pretrained(folder)  # fmt: skip
    return folder
