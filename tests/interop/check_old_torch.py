"""PyTorch 1.13, the first with weights_only, loads what the program writes."""

import json
import subprocess
from pathlib import Path

import cases
from report import equal, expect
from tensors import describe, load


def main(report, tool, python):
    """One check for each .pth of the fold cases, and for a few others."""
    outputs = {f"case {case['name']!r}": cases.folded(tool, case, ".pth") for case in cases.all_cases()}
    outputs["tied tensors and views"] = tool.work / "shared_out.pth"
    outputs["several types"] = tool.work / "dtype.pth"
    answer = None
    with report.check(f"{python} has an old PyTorch"):
        answer = ask(python, outputs.values())
        version = answer["torch"]
        report.note(f"this is PyTorch {version}")
        expect(int(version.split(".")[0]) < 2, f"PyTorch is {version}, not 1.13")
    if answer is None:
        return
    for what, path in outputs.items():
        with report.check(f"old PyTorch loads {what}, weights only"):
            found = answer["files"][str(path)]
            expect(isinstance(found, list), found)
            equal(found, [{"name": name, **describe(tensor)} for name, tensor in load(path).items()], "what is loaded")


def ask(python, paths):
    """What old_torch_digest.py says under that interpreter."""
    script = Path(__file__).with_name("old_torch_digest.py")
    done = subprocess.run([python, script, *paths], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout)
