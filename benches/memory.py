"""Memory of a fold against the size of the checkpoint: the table of docs/performance.md.

    python benches/memory.py --binary target/release/m2pt-surgery [--sizes 0.346 5 20] [--folder DIR]

Inputs are safetensors files full of holes, which take no room on the disk; the output takes its size. Memory is the highest anonymous resident
memory (RssAnon), looked at every millisecond: what the process itself holds. Its maps of files are the system's cache, which it gives back when it
needs the room.
"""

import argparse
import json
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from compare import anonymous


def sparse(path, size):
    """A ViT in float32 of about so many bytes: 12 blocks, of the width that it takes."""
    width = max(64, round((size / 4 / (12 * 12)) ** 0.5 / 64) * 64)
    shapes = {}
    for block in range(12):
        for name, shape in (("attn.qkv", (3 * width, width)), ("attn.proj", (width, width)), ("mlp.fc1", (4 * width, width)), ("mlp.fc2", (width, 4 * width))):
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end, 4 * 4 * width * width


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/m2pt-surgery")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.346, 5, 20], help="of each input, in GB")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    print("| checkpoint | largest tensor | output | seconds | anonymous memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        for size in arguments.sizes:
            for name in ("target", "aux"):
                total, largest = sparse(folder / f"{name}.safetensors", size * 1e9)
            fold = [arguments.binary, "fold", folder / "target.safetensors", "--aux", folder / "aux.safetensors", "--lambda", "0.1"]
            for output, more in (("one .safetensors", []), ("one .pth", []), ("shards, one by one", ["--max-shard-size", f"{round(size * 125)}MB", "--resume"])):
                place = folder / {"one .safetensors": "out.safetensors", "one .pth": "out.pth"}.get(output, "out")
                begin = time.perf_counter()
                memory = anonymous([*map(str, fold), "-o", str(place), "--no-sync", *more])
                seconds = time.perf_counter() - begin
                print(f"| {total / 1e9:.2f} GB | {largest / 1e6:.0f} MB | {output} | {seconds:.1f} | {memory:.1f} MiB |", flush=True)
                subprocess.run(["rm", "-r", str(place)], check=True)


if __name__ == "__main__":
    main()
