"""Every container, type and layout that PyTorch and its kin write: `inspect --hash` lists what they themselves load."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import Wrong, equal, expect

FACTS = ("name", "dtype", "shape", "sha256")
OTHER = ("name", "kind", "dtype", "shape")
# Parts that the old PyTorch writes, too, and those that only the new one does.
BOTH = ("saves", "objects", "script", "package", "modules", "training", "special")
NEW = ("numpy", "streams", "archives", "safetensors", "shards", "dcp", "rebuild")
SHOWN = 4


def main(report, tool, old_python):
    """One check per group of files; `old_python` may be None."""
    with report.check("the comparison of listings notices every difference"):
        notices()
    writers = {"new": start(tool, "new", sys.executable, [*BOTH, *NEW])}
    if old_python:
        writers["old"] = start(tool, "old", old_python, BOTH)
    for label, (process, folder) in writers.items():
        cases = []
        with report.check(f"{label} PyTorch writes the files to read"):
            _, errors = process.communicate()
            expect(process.returncode == 0, f"exit code {process.returncode}: {errors[-1500:]}")
            cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
            expect(len(cases) > 50, f"only {len(cases)} files were written")
        with ThreadPoolExecutor(2) as pool:
            problems = list(pool.map(lambda case: problem(tool, case), cases))
        groups = {}
        for case, found in zip(cases, problems):
            groups.setdefault(case["group"], []).append((case, found))
        for group, members in groups.items():
            tensors = sum(len(case.get("tensors", ())) + len(case.get("others", ())) for case, _ in members)
            with report.check(f"{label} PyTorch, {group}: {len(members)} files, {tensors} tensors"):
                wrong = [f"{case['what']}: {found}" for case, found in members if found]
                more = f" | and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
                expect(not wrong, f"{len(wrong)} of {len(members)}: " + " | ".join(wrong[:SHOWN]) + more)


def start(tool, label, python, parts):
    """Start writing; returns the process and its folder."""
    folder = tool.work / f"differential_{label}"
    script = Path(__file__).with_name("diff_write.py")
    command = [python, script, folder, *parts]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True), folder


def problem(tool, case):
    """What is wrong with what the program finds in a file; None if nothing is."""
    if "error" in case:
        return case["error"]
    root = case.get("root", "")
    done = tool.start("inspect", case["file"], "--hash", "--json", *([] if root is None else ["--root", root]))
    if done.returncode == 2 and case.get("may_refuse") and "error: " in done.stderr:
        return None
    if case["twice"]:
        refused = done.returncode == 2 and "two tensors have this full name" in done.stderr
        return None if refused else f"two tensors of one name, exit code {done.returncode}: {done.stderr[-300:]}"
    if done.returncode != 0:
        return f"exit code {done.returncode}: {done.stderr[-400:].strip().replace(str(tool.work), '')}"
    try:
        compare(json.loads(done.stdout), case)
    except Exception as error:
        return str(error)[:700]
    return None


def compare(found, case):
    """Fail unless the listing is the expected one."""
    wanted = case["tensors"]
    tensors = [{key: tensor.get(key) for key in FACTS} for tensor in found["tensors"]]
    if case.get("suffix"):
        tensors = [without_prefix(tensor, wanted) for tensor in tensors]
    if case.get("any_name") and len(tensors) == len(wanted) == 1:
        tensors[0]["name"] = wanted[0]["name"]
    allowed = [without_name(tensor) for tensor in case.get("allowed", ())]
    names = {tensor["name"] for tensor in wanted}
    tensors = [t for t in tensors if t["name"] in names or without_name(t) not in allowed]
    if case.get("any_order"):
        tensors, wanted = (sorted(listing, key=lambda tensor: tensor["name"]) for listing in (tensors, wanted))
    same_names([t["name"] for t in tensors], [t["name"] for t in wanted])
    for tensor, facts in zip(tensors, wanted):
        equal({k: v for k, v in tensor.items() if k != "name"}, without_name(facts), facts["name"] or "the tensor")
    others = [{key: tensor.get(key) for key in OTHER} for tensor in found.get("others", ())]
    others_wanted = [{key: tensor[key] for key in OTHER} for tensor in case["others"]]
    same_names([t["name"] for t in others], [t["name"] for t in others_wanted])
    for tensor, facts in zip(others, others_wanted):
        if facts["shape"] is None:
            tensor["shape"] = None
        equal(tensor, facts, "what is listed beside the tensors")


def notices():
    """Change each fact of a listing in turn, and find it refused."""
    first = {"name": "a", "dtype": "float32", "shape": [2], "sha256": "00"}
    second = {"name": "b", "dtype": "int8", "shape": [], "sha256": "11"}
    other = {"name": "s", "kind": "meta", "dtype": "float32", "shape": [3]}
    case = {"tensors": [first, second], "others": [other]}
    compare(case, case)
    changed = {"name": "c", "dtype": "float16", "shape": [1, 2], "sha256": "22"}
    wrong = [{**case, "tensors": [{**first, key: value}, second]} for key, value in changed.items()]
    wrong += [{**case, "tensors": tensors} for tensors in ([second, first], [first], [first, second, second], [])]
    wrong += [{**case, "others": others} for others in ([], [{**other, "kind": "nested"}], [{**other, "shape": [4]}])]
    for found in wrong:
        try:
            compare(found, case)
        except Wrong:
            continue
        raise Wrong(f"nothing is said of {found}")
    extra = {**case, "tensors": [first, second, {**first, "name": "cache"}]}
    compare(extra, {**case, "allowed": [first]})


def without_name(tensor):
    """All that is known of a tensor but its name."""
    return {key: value for key, value in tensor.items() if key != "name"}


def without_prefix(tensor, wanted):
    """The tensor under the expected name that its own name ends with."""
    for name in sorted((t["name"] for t in wanted), key=len, reverse=True):
        if tensor["name"].endswith("." + name):
            return {**tensor, "name": name}
    return tensor


def same_names(found, wanted):
    """Fail unless both lists of names are equal, telling the first differences."""
    if found == wanted:
        return
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    first = next((pair for pair in zip(found, wanted) if pair[0] != pair[1]), None)
    counts = f"{len(found)} names instead of {len(wanted)}"
    expect(False, f"{counts}: missing {missing[:4]}, extra {extra[:4]}, first out of order {first}")
