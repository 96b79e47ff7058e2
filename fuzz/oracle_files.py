"""Compares what this product and PyTorch, or NumPy, read in the files of a folder that fuzz/examples/listing.rs filled.

    cargo run --manifest-path fuzz/Cargo.toml --example listing torch_zip fuzz/corpus/torch_zip OUT
    python fuzz/oracle_files.py OUT

The targets are `torch_zip`, `legacy` and `npy`. PyTorch reads with `weights_only=True`, which calls nothing that a file could choose,
and NumPy without pickles. Every tensor that both find under the
same name must be the same: type, shape and bytes. Ends with status 1 where one is not. What only one of them reads is counted, by
reason: PyTorch checks no checksums, overlaps or sizes, and refuses most classes that this product shows as inert values.
"""

import collections
import hashlib
import json
import pathlib
import re
import sys
import warnings

import numpy
import torch

warnings.simplefilter("ignore")


def tensors(value, path, found, open):
    """Every dense tensor by its dotted path; one that cannot be told from another by that is left out."""
    if isinstance(value, torch.Tensor):
        name = ".".join(path)
        found[name] = None if name in found else value
    elif isinstance(value, (dict, list, tuple)) and id(value) not in open:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(key, (str, int)):
                tensors(item, [*path, str(key)], found, open | {id(value)})


def digest(tensor):
    if isinstance(tensor, numpy.ndarray):
        # The types that this product reads; all others it lists.
        if tensor.dtype.kind not in "biufc" or tensor.dtype.itemsize > (16 if tensor.dtype.kind == "c" else 8):
            return None
        data = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        return [tensor.dtype.newbyteorder("=").name, list(tensor.shape), hashlib.sha256(data).hexdigest()]
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type == "meta":
        return None
    if tensor.numel() * tensor.element_size() > 1 << 24:
        return None
    data = tensor.detach().contiguous().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), hashlib.sha256(data).hexdigest()]


counts = collections.Counter()
examples = {}
differing = []
compared = 0
for listing in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    file = listing.with_suffix("")
    ours = json.loads(listing.read_text())
    try:
        theirs = {}
        if file.read_bytes()[:6] == b"\x93NUMPY":
            theirs["array"] = numpy.load(file, allow_pickle=False)
        else:
            tensors(torch.load(file, weights_only=True, map_location="cpu"), [], theirs, frozenset())
    except Exception as error:
        theirs, reason = None, f"{type(error).__name__}: {error}"
    ours_reads, theirs_reads = "tensors" in ours, theirs is not None
    kind = {(True, True): "both read", (False, False): "both refuse"}.get((ours_reads, theirs_reads))
    if kind is None:
        reason = ours["refused"] if theirs_reads else reason
        reason = re.sub(r"\d+", "N", re.sub(r"\"[^\"]*\"|'[^']*'|`[^`]*`", "...", reason.replace("\n", " ")))[:110]
        kind = f"only the other reads: {reason}" if theirs_reads else f"only this product reads: {reason}"
    counts[kind] += 1
    examples.setdefault(kind, file.name)
    if not (ours_reads and theirs_reads):
        continue
    for name, tensor in theirs.items():
        expected = tensor is not None and digest(tensor)
        if not expected:
            continue
        compared += 1
        if ours["tensors"].get(name) != expected:
            differing.append(f"{file.name}: {name!r} is {ours['tensors'].get(name)}, to PyTorch {expected}")
for kind, count in counts.most_common():
    print(f"{count:6} {kind}  ({examples[kind]})")
print(f"{compared} tensors compared, {len(differing)} differ")
print("\n".join(differing))
sys.exit(bool(differing))
