"""Whole commands beside `cp`, PyTorch, safetensors' recipe and mergekit-pytorch, by turns in one run: the tables of docs/performance.md.

    python benches/compare.py --binary target/release/m2pt-surgery [--size base|giant|both] [--rounds 7] [--folder DIR] [--mergekit PATH]
        [--pages read|written|small] [--full-memory] [--threads 1 2 ...] [--cold] [--only table|peers|small|threads|cold]

Every output is a new file; the one before is removed first, so that all sides find the same memory for it. `cp` alone stands beside
`--no-sync`, and `cp` and `sync FILE` beside the default. Inputs are in the page cache, read from the disk, in large pages,
or (`--pages written`) as PyTorch wrote them, mostly in smaller ones, or (`--pages small`) in the smallest. Times are medians, and a ratio is the median of the
rounds' ratios, with the lowest and the highest of them. With `--full-memory`, outputs stay in the page cache until they are pushed out, and are synced, untimed,
before the next command: as on a machine that has run for a while, and that no host takes free memory from. What was pushed out of the inputs is read again
before each command, untimed. `--threads` adds a table of folds on so many threads, `--cold` one of inputs that are not in the page cache.
Memory is the highest anonymous resident memory (RssAnon), looked at every millisecond in a run of its own.
"""

import argparse
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"base": "vit_base_patch16_224", "giant": "vit_giant_patch14_224"}

MAKE = """
import sys, timm, torch
from safetensors.torch import save_file
name, folder, models, halves = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "halves"
for number, kind in enumerate(("image", "audio", "video", "point")[:models]):
    torch.manual_seed(number)
    state = timm.create_model(name).state_dict()
    torch.save(state, f"{folder}/{kind}.pth")
    if number < 2:
        save_file({key: value.contiguous() for key, value in state.items()}, f"{folder}/{kind}.safetensors")
    if number < 2 and halves:
        for dtype, short in ((torch.bfloat16, "bf16"), (torch.float16, "f16")):
            torch.save({key: value.to(dtype) for key, value in state.items()}, f"{folder}/{kind}_{short}.pth")
"""

TORCH_FOLD = """
import sys, torch
target, aux, output = sys.argv[1:]
target, aux = (torch.load(path, mmap=True, weights_only=True) for path in (target, aux))
layers = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
torch.save({key: value + 0.1 * aux[key] if key.endswith(layers) else value for key, value in target.items()}, output)
"""

RECIPE = """
import sys, torch
from safetensors.torch import save_file
source, output = sys.argv[1:]
state = torch.load(source, map_location="cpu", weights_only=True)
save_file({key: value.contiguous() for key, value in state.items()}, output, metadata={"format": "pt"})
"""

MERGEKIT = """
merge_method: task_arithmetic
base_model: {folder}/zero.safetensors
models:
  - {{model: {folder}/image.safetensors, parameters: {{weight: 1.0}}}}
  - {{model: {folder}/audio.safetensors, parameters: {{weight: 0.1}}}}
"""


def timed(command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    return time.perf_counter() - start


def anonymous(command):
    """The peak of RssAnon, in MiB."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            break
        peak = max([peak] + [int(line.split()[1]) for line in lines if line.startswith("RssAnon")])
        time.sleep(0.001)
    if child.wait():
        raise SystemExit(f"{command} failed")
    return peak / 1024


def rewrite(path):
    """Writes a file anew, so that its pages come into the page cache one by one, as without large folios."""
    data = path.read_bytes()
    path.unlink()
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(data), 4096):
            file.write(data[begin : begin + 4096])


def evict(path):
    """Takes a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def rate(path):
    """How fast a file is read that is in the page cache, in GB/s."""
    buffer = memoryview(bytearray(1 << 19))
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / 1e9 / (time.perf_counter() - start)


def cache(paths):
    """Reads files from the disk into the page cache: again, if a virtual machine got memory for them that is slow to read, as it
    may be where it was never used before. At least twice: the first time all may be slow alike."""
    best = 0
    for _ in range(5):
        for path in paths:
            evict(path)
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        rates = [max(rate(path) for _ in range(3)) for path in paths]
        before, best = best, max(best, *rates)
        if before and min(rates) > 0.8 * best:
            break
    print(f"inputs are read from the page cache at {min(rates):.1f} to {max(rates):.1f} GB/s", flush=True)


class Bench:
    def __init__(self, binary, folder, rounds, full):
        self.binary, self.folder, self.rounds = str(binary), folder, rounds
        self.full, self.kept, self.number = full, [], 0

    def keep(self, output):
        """Leaves an output in the page cache, and on the disk until it must have gone from there."""
        self.number += 1
        self.kept.append(output.rename(self.folder / f"kept{self.number}"))
        subprocess.run(["sync", str(self.kept[-1])], check=True)
        while sum(path.stat().st_size for path in self.kept) > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            self.kept.pop(0).unlink()

    def fill(self, path):
        """Copies a file until no memory is free."""
        while os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 1 << 30 and self.number < 100:
            output = self.folder / "fill"
            shutil.copyfile(path, output)
            self.keep(output)

    def fresh(self, command, output, inputs=(), cold=()):
        output.unlink(missing_ok=True)
        if self.full:
            for path in inputs:
                rate(path)
        for name in cold:
            evict(self.folder / name)
        took = timed(command)
        if self.full:
            self.keep(output)
        else:
            output.unlink()
        return took

    def row(self, what, arguments, copied, synced=False, cold=()):
        """One line: the program, and `cp` of the file `copied`; `cold` are files that neither finds in the page cache."""
        output = self.folder / f"out.{arguments[-1]}"
        command = [self.binary, *arguments[:-1], "-o", str(output), *([] if synced else ["--no-sync"])]
        plain = ["cp", str(self.folder / copied), str(output)]
        copy = ["sh", "-c", '"$@" && sync "$3"', "sh", *plain] if synced else plain
        inputs = [path for path in map(Path, arguments) if path.is_file()]
        ours, theirs = [], []
        # A first round does not count: memory that was never used before may be slow.
        for number in range(-1, self.rounds):
            # Each is the first by turns: what comes first may leave the other better memory.
            turns = [(copy, theirs), (command, ours)]
            for run, times in turns if number % 2 else reversed(turns):
                took = self.fresh(run, output, inputs, cold)
                if number >= 0:
                    times.append(took)
        memory = anonymous(command)
        output.unlink()
        ratios = [a / b for a, b in zip(ours, theirs)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"| {what} | {statistics.median(ours):.3f} s | {statistics.median(theirs):.3f} s | {ratio} | {memory:.0f} MiB |",
            flush=True,
        )

    def peer(self, what, command, output):
        took = statistics.median(self.fresh(command, output) for _ in range(min(self.rounds, 3)))
        memory = anonymous(command)
        output.unlink()
        print(f"| {what} | {took:.2f} s | {memory:.0f} MiB |", flush=True)

    def path(self, name):
        return str(self.folder / name)

    def heading(self):
        print("| | here | `cp` of the target | ratio (of rounds) | anonymous memory |\n| --- | --- | --- | --- | --- |")

    def fold_pth(self):
        return ["fold", self.path("image.pth"), "--lambda", "0.1", "--aux", self.path("audio.pth")]

    def threads(self, counts):
        self.heading()
        for count in counts:
            arguments = [*self.fold_pth(), "--threads", str(count), "pth"]
            self.row(f"fold .pth + .pth -> .pth, {count} thread{'s' * (count > 1)}", arguments, "image.pth")

    def cold(self):
        self.heading()
        inputs = ("image.pth", "audio.pth")
        self.row("fold .pth + .pth -> .pth, cold", [*self.fold_pth(), "pth"], "image.pth", cold=inputs)
        convert = ["convert", self.path("image.pth"), "safetensors"]
        self.row("convert .pth -> .safetensors, cold", convert, "image.pth", cold=inputs[:1])

    def large(self):
        """Of the large model what both formats cost, one after the other: all of its files would not stay in the page cache together."""
        for kind, other in (("pth", "safetensors"), ("safetensors", "pth")):
            (target, aux), away = ([self.folder / f"{model}.{ending}" for model in ("image", "audio")] for ending in (kind, other))
            for path in away:
                evict(path)
            if self.full:
                self.fill(target)
            cache([target, aux])
            fold = ["fold", str(target), "--lambda", "0.1", "--aux", str(aux), kind]
            self.heading()
            self.row(f"fold .{kind} -> .{kind}", fold, target.name)
            self.row("the same, durable (`cp` and `sync FILE`)", fold, target.name, synced=True)
            self.row(f"convert .{kind} -> .{other}", ["convert", str(target), other], target.name)

    def table(self):
        pth = self.fold_pth()
        more = ["--aux", self.path("video.pth"), "--aux", self.path("point.pth")]
        self.heading()
        self.row("fold .pth + .pth -> .pth", [*pth, "pth"], "image.pth")
        self.row("the same, durable (`cp` and `sync FILE`)", [*pth, "pth"], "image.pth", synced=True)
        safetensors = ["fold", self.path("image.safetensors"), "--lambda", "0.1", "--aux", self.path("audio.safetensors")]
        self.row("fold .safetensors -> .safetensors", [*safetensors, "safetensors"], "image.safetensors")
        self.row("fold, three auxiliaries", [*pth, *more, "pth"], "image.pth")
        for short in ("bf16", "f16"):
            files = [self.path(f"{kind}_{short}.pth") for kind in ("image", "audio")]
            self.row(f"fold, {short}", ["fold", files[0], "--lambda", "0.1", "--aux", files[1], "pth"], f"image_{short}.pth")
        self.row("convert .pth -> .safetensors", ["convert", self.path("image.pth"), "safetensors"], "image.pth")
        self.row("convert .safetensors -> .pth", ["convert", self.path("image.safetensors"), "pth"], "image.safetensors")
        for dtype in ("bf16", "f16"):
            self.row(f"convert --dtype {dtype}", ["convert", self.path("image.pth"), "--dtype", dtype, "pth"], "image.pth")

    def peers(self, mergekit):
        python = sys.executable
        files = self.path("image.pth"), self.path("audio.pth")
        output = self.folder / "out.pth"
        print("| | time | anonymous memory |\n| --- | --- | --- |")
        fold = [self.binary, "fold", files[0], "--aux", files[1], "--lambda", "0.1", "-o", str(output)]
        self.peer("fold, durable", fold, output)
        self.peer("PyTorch: load (mmap), add, save", [python, "-c", TORCH_FOLD, *files, str(output)], output)
        shards = self.folder / "out.safetensors"
        convert = [self.binary, "convert", files[0], "-o", str(shards)]
        self.peer("convert to .safetensors, durable", convert, shards)
        self.peer("PyTorch: load, `save_file`", [python, "-c", RECIPE, files[0], str(shards)], shards)
        if mergekit:
            self.mergekit(mergekit)

    def mergekit(self, program):
        import torch
        from safetensors.torch import load_file, save_file

        zero = {key: torch.zeros_like(value) for key, value in load_file(self.path("image.safetensors")).items()}
        save_file(zero, self.path("zero.safetensors"))
        (self.folder / "merge.yml").write_text(MERGEKIT.format(folder=self.folder))
        command = [program, self.path("merge.yml"), self.path("merged")]
        times = []
        for _ in range(3):
            shutil.rmtree(self.folder / "merged", ignore_errors=True)
            times.append(timed(command))
        shutil.rmtree(self.folder / "merged")
        print(f"| mergekit-pytorch | {statistics.median(times):.2f} s | {anonymous(command):.0f} MiB |", flush=True)

    def small(self):
        print("| | median |\n| --- | --- |")
        image = self.path("image.pth")
        for what, command in [
            ("start-up (`--version`)", ["--version"]),
            ("inspect", ["inspect", image]),
            ("inspect --stats", ["inspect", "--stats", image]),
            ("inspect --hash", ["inspect", "--hash", image]),
            ("scan", ["scan", image]),
        ]:
            took = statistics.median(timed([self.binary, *command]) for _ in range(max(self.rounds, 7)))
            print(f"| {what} | {took * 1000:.1f} ms |", flush=True)


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--size", choices=[*SIZES, "both"], default="base")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the files go: 3 GB, 25 GB for the large model, and with --full-memory as much again as there is memory")
    parser.add_argument("--mergekit", help="the program mergekit-pytorch")
    parser.add_argument("--pages", choices=["read", "written", "small"], default="read", help="how inputs came into the page cache")
    parser.add_argument("--full-memory", action="store_true", help="keep outputs, so that no memory is free")
    parser.add_argument("--threads", type=int, nargs="+", default=[])
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--only", choices=["table", "peers", "small", "threads", "cold"], help="one of the tables")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the folder goes, too
    if options.size != "base" and options.pages != "read":
        parser.error("--pages is for the base model: the files of the large one do not stay in the page cache together")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{processor()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}, medians of {options.rounds}")
    for size in SIZES if options.size == "both" else [options.size]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            models, kinds = ("4", "halves") if size == "base" else ("2", "none")
            subprocess.run([sys.executable, "-c", MAKE, SIZES[size], folder, models, kinds], check=True)
            if options.pages == "small":
                for path in Path(folder).iterdir():
                    rewrite(path)
            bench = Bench(options.binary.resolve(), Path(folder), options.rounds, options.full_memory)
            if size == "base":
                if options.pages == "read":
                    cache(sorted(Path(folder).iterdir()))
                if options.full_memory:
                    bench.fill(Path(bench.path("image.pth")))
            megabytes = os.path.getsize(bench.path("image.pth")) / 1e6
            print(f"\n## {SIZES[size]}, {megabytes:,.0f} MB\n")
            tables = {"table": bench.table if size == "base" else bench.large}
            if size == "base":
                tables |= {"peers": lambda: bench.peers(options.mergekit), "small": bench.small}
            if options.threads:
                tables["threads"] = lambda: bench.threads(options.threads)
            if options.cold:
                tables["cold"] = bench.cold
            for name, table in tables.items():
                if options.only in (None, name):
                    print()
                    table()


if __name__ == "__main__":
    main()
