"""The fold cases of fixtures/expected/folds.json, each folded once into each container."""

import json

from tool import EXPECTED

SUFFIXES = (".pth", ".safetensors")


def all_cases():
    """Every case: a dictionary with `name`, `target`, `aux`, `args` and `tensors`."""
    return json.loads((EXPECTED / "folds.json").read_text(encoding="utf-8"))


def named(name):
    """One case."""
    return next(case for case in all_cases() if case["name"] == name)


def folded(tool, case, suffix):
    """The output of a case, folded unless that was done before."""
    path = tool.work / (case["name"].replace(" ", "_") + suffix)
    return path if path.exists() else tool.fold(*case["args"], out=path)
