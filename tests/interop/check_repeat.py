"""The same command gives the same bytes; input and output may be the same file; a file is not replaced unasked."""

import shutil

import cases
import reference
from report import equal, expect
from tensors import load, same_state
from tool import FIXTURES, ROOT


def main(report, tool):
    """Repetition, in-place folds, refusal."""
    case = cases.named("lambda 0.1")
    wanted = reference.from_args(case["args"])[1]
    for suffix in cases.SUFFIXES:
        with report.check(f"the same fold to {suffix} twice gives the same bytes"):
            path = tool.fold(*case["args"], out=f"again{suffix}")
            first = path.read_bytes()
            tool.fold(*case["args"], "--force", out=path)
            expect(path.read_bytes() == first, "the bytes differ")
    folder = tool.work / "in_place"
    folder.mkdir()
    for name, place, args in (
        ("target.pth", 0, case["args"]),
        ("aux.pth", 2, case["args"]),
        ("target.safetensors", 0, ["fixtures/mnist_vit.safetensors", *case["args"][1:]]),
    ):
        with report.check(f"fold with the output in place of {name}"):
            in_place(tool, folder / name, place, args, wanted)
    with report.check("an existing file is not replaced without --force"):
        path = folder / "target.pth"
        before = path.read_bytes()
        tool.run("fold", *case["args"], "-o", path, code=2)
        expect(path.read_bytes() == before, "it was changed")
    with report.check("no scratch files are left"):
        equal(sorted(path.name for path in folder.iterdir()), ["aux.pth", "target.pth", "target.safetensors"], "the folder")


def in_place(tool, path, place, args, wanted):
    """Fold copies of the fixtures, the output being the input at `place` of the arguments."""
    args = list(args)
    shutil.copyfile(ROOT / args[place], path)
    path.chmod(0o640)
    args[place] = path
    tool.fold(*args, "--force", out=path)
    if path.suffix == ".safetensors":
        wanted = {name: wanted[name] for name in load(FIXTURES / "mnist_vit.safetensors")}
    same_state(load(path), wanted)
    equal(oct(path.stat().st_mode & 0o777), oct(0o640), "the file's mode")
