"""`inspect --hash` says of every committed checkpoint what PyTorch says."""

import json
import math

import torch

import cases
from report import equal
from tool import EXPECTED, FIXTURES


def main(report, tool):
    """One check for each checkpoint."""
    expected = json.loads((EXPECTED / "tensors.json").read_text(encoding="utf-8"))
    for file, tensors in expected.items():
        with report.check(f"inspect --hash {file}: names, order, types, shapes, values"):
            check(tool, FIXTURES / file, tensors)
    case = cases.named("lambda 0.1")
    for suffix in cases.SUFFIXES:
        with report.check(f"inspect --hash of a fold to {suffix}"):
            check(tool, cases.folded(tool, case, suffix), case["tensors"])


def check(tool, path, wanted):
    """Compare one file's tensors."""
    found = tool.inspect(path, "--hash", "--root", "")["tensors"]
    equal([tensor["name"] for tensor in found], list(wanted), "the list of names")
    for tensor in found:
        name, facts = tensor["name"], wanted[tensor["name"]]
        equal({key: tensor.get(key) for key in facts}, facts, name)
        size = math.prod(facts["shape"]) * getattr(torch, facts["dtype"]).itemsize
        equal(tensor["bytes"], size, f"bytes of {name}")
