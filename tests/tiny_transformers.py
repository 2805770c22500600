"""Tiny random models of transformers, saved as their makers save them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

LABELS = ["airplane", "sofa, couch", "zebra", "dining_table", "car", "dog"]
SIZE = 64
"""Side of the models' input; that of their masks is a quarter."""
SWIN = {
    "image_size": SIZE,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
}
SQUARE = {"height": SIZE, "width": SIZE}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
NAMES = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: i for i, label in enumerate(LABELS)},
}


def mask2former():
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
        SwinConfig,
    )

    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 8}
    sizes |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_attention_heads": 2}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN, **STAGES),
        encoder_layers=1,
        decoder_layers=2,
        **sizes,
        **NAMES,
    )
    return Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessorPil(size=SQUARE)


def maskformer():
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessorPil,
        SwinConfig,
    )

    decoder = DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=8,
    )
    config = MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=SwinConfig(**SWIN, **STAGES),
        decoder_config=decoder,
        **NAMES,
    )
    return MaskFormerForInstanceSegmentation(config), MaskFormerImageProcessorPil(size=SQUARE)


def oneformer():
    from transformers import (
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessorPil,
        SwinConfig,
    )

    sizes = {"hidden_dim": 32, "mask_dim": 32, "conv_dim": 32, "encoder_feedforward_dim": 32}
    sizes |= {"dim_feedforward": 32, "num_attention_heads": 2, "num_queries": 8}
    config = OneFormerConfig(
        backbone_config=SwinConfig(**SWIN, **STAGES),
        encoder_layers=1,
        decoder_layers=2,
        query_dec_layers=1,
        task_seq_len=20,
        **sizes,
        **NAMES,
    )
    return OneFormerForUniversalSegmentation(config), OneFormerImageProcessorPil(size=SQUARE)


def eomt():
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessorPil

    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=SIZE,
        patch_size=8,
        num_blocks=1,
        num_queries=8,
        num_upscale_blocks=1,
        num_register_tokens=1,
        **NAMES,
    )
    size = {"shortest_edge": SIZE, "longest_edge": SIZE}
    return EomtForUniversalSegmentation(config), EomtImageProcessorPil(size=size, do_pad=True)


def segformer():
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessorPil,
    )

    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **NAMES,
    )
    return SegformerForSemanticSegmentation(config), SegformerImageProcessorPil(size=SQUARE)


QUERIES = {f.__name__: f for f in (mask2former, maskformer, oneformer, eomt)}


def save(build, folder: Path, licence: str | None = None) -> str:
    """Save a random model that is sure of its labels, and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build()
    heads = (len(LABELS), len(LABELS) + 1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) in heads:
                layer.weight.mul_(60)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if model.config.model_type == "oneformer":
        from conftest import train_tokenizer

        train_tokenizer(["the task is instance", "the task is semantic"]).save_pretrained(folder)
    if licence:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return str(folder)


def grounding_dino(folder: Path, words: list[str]) -> str:
    """Save a random GroundingDINO whose tokenizer knows some words."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        SwinConfig,
    )

    pieces = [f"[unused{i}]" for i in range(1030)] + words
    named = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    for place, piece in (named | {1012: ".", 1029: "?"}).items():  # the model knows these places
        pieces[place] = piece
    text = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**SWIN, out_indices=[2, 3, 4]),
        text_config=text,
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        d_model=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_feature_levels=3,
        max_text_len=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    BertTokenizer(vocab={w: i for i, w in enumerate(pieces)}).save_pretrained(folder)
    size = {"shortest_edge": SIZE, "longest_edge": SIZE}
    GroundingDinoImageProcessorPil(size=size).save_pretrained(folder)
    return str(folder)


def sam(folder: Path) -> str:
    """Save a random Segment Anything."""
    from transformers import (
        SamConfig,
        SamImageProcessorPil,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        mlp_dim=32,
        global_attn_indexes=[0],
        window_size=2,
        num_pos_feats=8,
    )
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=SIZE, patch_size=8, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(**_decoder()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SamModel(config)
    with torch.no_grad():
        for weight in model.mask_decoder.parameters():  # they are made too small to draw anything
            weight.mul_(20 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    SamImageProcessorPil(size={"longest_edge": SIZE}, pad_size=SQUARE).save_pretrained(folder)
    return str(folder)


def sam2(folder: Path) -> str:
    """Save a random Segment Anything 2, and the configuration of its image processor."""
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIZE, SIZE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        global_attention_blocks=[3],
        window_size_per_stage=[4, 2, 4, 2],
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=16, image_size=SIZE),
        mask_decoder_config=Sam2MaskDecoderConfig(**_decoder()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Sam2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        f'{{"image_processor_type": "Sam2ImageProcessor", "size": {{"height": {SIZE}, "width": '
        f'{SIZE}}}, "mask_size": {{"height": {SIZE // 4}, "width": {SIZE // 4}}}}}'
    )
    return str(folder)


def _decoder() -> dict:
    sizes = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return sizes | {"attention_downsample_rate": 1, "iou_head_hidden_dim": 16}
