"""Tensors that are no rows of bytes: sparse, quantized, nested, on the meta device; and lazily changed views."""

import torch

from diff_saves import load

# PyTorch 1.13 can make more of them than it can save.
OLD = torch.__version__.startswith("1.")


def write(cases):
    """One file for each, and one of all."""
    torch.manual_seed(29)
    cases.group = "sparse, quantized, nested, meta"
    made = {}
    for what, make in makers():
        try:
            tensor = make()
        except Exception as error:
            cases.broken(what, error)
            continue
        made[what] = tensor
        save(
            cases,
            what,
            {"weight": torch.arange(3), "special": tensor, "nested": [{"again": tensor}], "z": torch.rand(2)},
        )
    save(cases, "all together", {"first": torch.rand(2), **made, "last": torch.rand(2)})
    save(cases, "nothing else", {"special": made["sparse coo"]})
    save(
        cases,
        "as parameters",
        {"s": torch.nn.Parameter(made["sparse coo"]), "m": torch.nn.Linear(2, 2, device="meta").weight},
    )
    if hasattr(torch.ao.nn, "quantized"):
        layer = torch.ao.nn.quantized.Linear(4, 3)
        save(cases, "state dict of a quantized layer", dict(layer.state_dict()))
    legacy(cases, made)
    cases.group = "views that are changed when they are used"
    values = torch.arange(1.0, 7.0)
    lazy = {
        "conjugated": torch.complex(values, values).conj(),
        "negated": torch._neg_view(values),
        "the imaginary part of a conjugate": torch.complex(values, values).conj().imag,
    }
    for what, tensor in lazy.items():
        save(cases, what, {"a": torch.arange(2), "view": tensor}, may_refuse=True)


def save(cases, what, obj, new=True, **rules):
    """torch.save, torch.load."""
    path = cases.path(what + (".pth" if new else ".legacy.pth"))
    torch.save(obj, path, _use_new_zipfile_serialization=new)
    cases.add_object(what, path, load(path), **rules)


def legacy(cases, made):
    """Those that legacy streams can hold; PyTorch itself reads nested ones from there before their sizes are known."""
    for what, tensor in made.items():
        if not what.startswith(("meta", "nested")):
            save(cases, what + ", legacy stream", {"weight": torch.arange(3), "special": tensor}, new=False)


def makers():
    """(what, function that makes the tensor)."""
    dense = torch.tensor([[0.0, 1.5, 0.0, 0.0], [2.5, 0.0, 0.0, 3.5]])
    yield "sparse coo", dense.to_sparse
    yield "sparse coo, not coalesced", lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 3))
    yield "sparse coo, hybrid, half", lambda: torch.sparse_coo_tensor([[0, 2]], torch.rand(2, 3).half(), (4, 3))
    yield "sparse coo, empty", lambda: torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), [], (2, 3))
    yield "sparse csr", dense.to_sparse_csr
    yield "sparse csr, int64", lambda: dense.long().to_sparse_csr()
    if not OLD:
        yield "sparse csc", dense.to_sparse_csc
        yield "sparse bsr", lambda: dense.to_sparse_bsr((1, 2))
        yield "sparse bsc", lambda: dense.to_sparse_bsc((1, 2))
    for dtype in (torch.qint8, torch.quint8, torch.qint32):
        name = str(dtype).replace("torch.", "")
        yield (
            "quantized per tensor " + name,
            lambda dtype=dtype: torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 3, dtype),
        )
    scales, zeros = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0, 3])
    yield "quantized per channel", lambda: torch.quantize_per_channel(torch.rand(2, 3), scales, zeros, 0, torch.qint8)
    yield "quantized, transposed", lambda: torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 3, torch.qint8).t()
    if not OLD:
        yield "nested", lambda: torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(1, 3)])
        yield (
            "nested, jagged",
            lambda: torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(1, 3)], layout=torch.jagged),
        )
    yield "meta", lambda: torch.empty(2, 3, device="meta")
    yield "meta, transposed half", lambda: torch.empty(2, 3, device="meta", dtype=torch.half).t()
    yield "meta, 0-dim", lambda: torch.empty((), device="meta", dtype=torch.int64)
