"""The models of the checks: seeded, and the fixtures' digit model."""

import torch
from timm.models.vision_transformer import VisionTransformer

LARGE = "vit_base_patch16_224"


def digits():
    """The fixtures' image ViT."""
    return VisionTransformer(img_size=32, patch_size=4, num_classes=10, embed_dim=64, depth=6, num_heads=4)


def audio_large():
    """A ViT-B over one-channel spectrograms, 1024 frames x 128 bins."""
    torch.manual_seed(2)
    return VisionTransformer(img_size=(1024, 128), patch_size=16, in_chans=1, num_classes=527, global_pool="avg")


def plain(model):
    """A state dict of copies."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def hard(shape, generator):
    """float64 values over many magnitudes, a fifth of them few-bit numbers, so that rounding meets ties; no zeros."""
    spread = torch.randn(shape, generator=generator, dtype=torch.float64)
    spread *= 10.0 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 10 - 8)
    short = torch.randint(1, 2**12, shape, generator=generator).double() / 2.0**8
    return torch.where(torch.rand(shape, generator=generator) < 0.2, short, spread)


def small_model(**options):
    """A small ViT."""
    sizes = {"img_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 40, "depth": 3, "num_heads": 4}
    return VisionTransformer(**{**sizes, **options})


def small(seed, dtype, **options):
    """The state dict of a small ViT, filled with `hard` values of the given type."""
    generator = torch.Generator().manual_seed(seed)
    return {name: hard(t.shape, generator).to(dtype) for name, t in small_model(**options).state_dict().items()}
