"""Every case of folds.json, in both containers: what PyTorch and safetensors load is what PyTorch computes."""

import cases
import models
import reference
from report import equal, expect
from tensors import describe, header, load, same_state, same_tensor


def main(report, tool):
    """Two checks for each case."""
    for case in cases.all_cases():
        source, wanted = reference.from_args(case["args"])
        with report.check(f"case {case['name']!r}: PyTorch computes here what folds.json says"):
            equal({name: describe(tensor) for name, tensor in wanted.items()}, case["tensors"], "the reference")
        for suffix in cases.SUFFIXES:
            with report.check(f"case {case['name']!r} to {suffix}: loads as what PyTorch computes"):
                check(tool, case, suffix, source, wanted)


def check(tool, case, suffix, source, wanted):
    """One case in one container."""
    path = cases.folded(tool, case, suffix)
    found = load(path)
    same_state(found, wanted)
    equal(list(found), list(case["tensors"]), "the order of names")
    for name, facts in case["tensors"].items():
        equal(describe(found[name]), facts, name)
    untouched = [name for name in wanted if wanted[name] is source[name]]
    for name in untouched:
        same_tensor(name, found[name], source[name])
    expect("--dtype" in case["args"] or untouched, "every tensor was changed")
    if suffix == ".pth":
        same_state(load(path, mmap=True), wanted)
        strides = {name: tensor.stride() for name, tensor in found.items() if not tensor.is_contiguous()}
        equal(strides, {}, "tensors that are not contiguous")
    else:
        equal(header(path).get("__metadata__", {}).get("format"), "pt", "the format in the metadata")
    models.digits().load_state_dict(found, strict=True)
