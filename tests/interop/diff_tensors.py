"""Tensors of every type in every layout, with random bits. Runs under old PyTorch, too."""

import torch

NAMES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    *("complex128", "complex64", "complex32", "bcomplex32"),
    *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
)


def savable(new=True):
    """The types that this PyTorch can save, in the zip container or as a legacy stream."""
    typed = set(torch.storage._dtype_to_storage_type_map())
    untyped = set(torch.storage._new_dtypes()) if new and hasattr(torch.storage, "_new_dtypes") else set()
    dtypes = [getattr(torch, name) for name in NAMES if hasattr(torch, name)]
    return [dtype for dtype in dtypes if dtype in typed | untyped]


def unlisted():
    """Types with elements of one byte or more that this PyTorch can save and NAMES lacks: there should be none."""
    known = {getattr(torch, name, None) for name in NAMES}
    every = set(torch.storage._dtype_to_storage_type_map())
    if hasattr(torch.storage, "_new_dtypes"):
        every |= set(torch.storage._new_dtypes())
    return {str(dtype) for dtype in every - known if not str(dtype).startswith("torch.q")}


def short(dtype):
    """`torch.float32` -> `float32`."""
    return str(dtype).replace("torch.", "")


def values(dtype, count, seed):
    """A row of `count` elements of random bits."""
    generator = torch.Generator().manual_seed(seed)
    top = 2 if dtype == torch.bool else 256
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, top, (count * size,), dtype=torch.uint8, generator=generator).view(dtype)


def layouts(dtype, seed=0):
    """One tensor of each layout by name. Some share a storage, one object has two names."""
    own = values(dtype, 24, seed)
    base = values(dtype, 60, seed + 1)
    made = {
        "contiguous": own.view(2, 3, 4),
        "transposed": values(dtype, 24, seed + 2).view(4, 6).t(),
        "permuted": values(dtype, 24, seed + 3).view(2, 3, 4).permute(2, 0, 1),
        "channels_last": values(dtype, 48, seed + 4).view(2, 4, 2, 3).permute(0, 3, 1, 2),
        "channels_last_3d": values(dtype, 48, seed + 5).view(2, 2, 2, 2, 3).permute(0, 4, 1, 2, 3),
        "offset view": base[7:31].view(4, 6),
        "offset.overlapping": base[20:44].view(2, 12).t(),
        "stepped": base[3:60:5],
        "expanded": values(dtype, 5, seed + 6).view(1, 5).expand(3, 5),
        "expanded.scalar": base[11].expand(2, 2),
        "windows": base.as_strided((5, 4), (2, 1), 9),
        "zero-size": values(dtype, 0, seed + 7).view(0, 3),
        "zero-size.of a storage": base[5:5],
        "zero-size.odd strides": base.as_strided((3, 0, 2), (7, 5, 1), 4),
        "0-dim": values(dtype, 1, seed + 8).view(()),
        "0-dim.view": base[59],
        "one.strange strides": base.as_strided((1, 4, 1), (1000, 3, 77), 2),
        "shared.first": base,
        "shared.again": own.view(24)[5:9],
    }
    made["tied"] = made["tied.twin"] = values(dtype, 6, seed + 9)
    return made
