"""Logits of every architecture of timm's vision_transformer module, by the program and by timm, on seeded weights and inputs.

As a program: runs all of them and writes the table of docs/parity.md (about an hour on two cores, 8 GB of memory).
    python tests/interop/parity.py --binary target/release/m2pt-surgery --table docs/parity.md [NAME...]
`check_parity.py` runs the small ones.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file

from tool import ROOT, Tool

sys.path.append(str(ROOT / "fixtures" / "generate"))
from variants import fill  # noqa: E402

TOLERANCE = 1e-4
# A ViT-L has 304 million parameters, one of 512 x 512 images a few more. What is larger is run with its first blocks.
LARGEST = 330e6
BLOCKS = 2
# Up to here models are also run on images of another size, and without telling the program their name.
SMALL = 100e6


def names():
    """The 163 names, as the program knows them."""
    return list(json.loads((ROOT / "src/model/timm.json").read_text())["architectures"])


def parameters(name):
    """The number of parameters of a whole model, without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def make(name, **arguments):
    """The model with seeded weights, and a generator for its inputs."""
    # Without timm's own initialisation, which takes longer than everything else.
    with torch.device("meta"):
        model = timm.create_model(name, **arguments).eval()
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    fill(model, generator)
    return model, generator


@torch.inference_mode()
def compare(tool, name, told=True, **arguments):
    """Runs one model; returns (largest difference of a logit, standard deviation of the logits, height, width)."""
    model, generator = make(name, **arguments)
    height, width = model.patch_embed.img_size
    inputs = torch.randn(2, model.in_chans, height, width, generator=generator)
    wanted = model(inputs)
    weights, samples, out = (tool.work / f"parity_{part}.safetensors" for part in ("model", "inputs", "logits"))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, weights)
    save_file({"inputs": inputs}, samples)
    del model
    config = tool.work / "parity.json"
    config.write_text(json.dumps({"architecture": name, "model_args": arguments}))
    flags = ["--config", config] if told else []
    tool.run("verify", weights, "--samples", samples, "--save-logits", out, "--force", "--input-size", f"{height}x{width}", *flags)
    difference = (load_file(out)["logits"] - wanted).abs().max().item()
    return difference, wanted.std().item(), height, width


def other_size(name):
    """Images that are not square, three patches narrower than high."""
    with torch.device("meta"):
        embed = timm.create_model(name, depth=1).patch_embed
    (height, width), (high, wide) = embed.img_size, embed.patch_size
    return {"img_size": [height + high, width - 2 * wide]}


def rows(tool, chosen):
    """One row of the table for each model: what was run, and the differences."""
    for name in chosen:
        count = parameters(name)
        cut = {"depth": BLOCKS} if count > LARGEST else {}
        difference, spread, height, width = compare(tool, name, **cut)
        row = {"name": name, "parameters": count, "cut": bool(cut), "size": f"{height} x {width}", "spread": spread,
               "difference": difference, "other_size": "", "other": None, "untold": None}
        if count < SMALL:
            row["other"], _, height, width = compare(tool, name, **other_size(name))
            row["other_size"] = f"{height} x {width}"
            row["untold"] = compare(tool, name, told=False)[0]
        yield row


def table(found):
    """The rows in Markdown."""
    number = lambda x: "" if x is None else f"{x:.1e}"  # noqa: E731
    lines = ["| architecture | parameters | run | size | difference | other size | difference | without its name |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in found:
        run = f"{BLOCKS} blocks" if row["cut"] else "whole"
        cells = [f"`{row['name']}`", f"{row['parameters'] / 1e6:.0f} M", run, row["size"], number(row["difference"]),
                 row["other_size"], number(row["other"]), number(row["untold"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="the file whose table is written anew")
    parser.add_argument("names", nargs="*", default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        found = []
        for row in rows(Tool(options.binary, work), options.names or names()):
            print(json.dumps(row), flush=True)
            found.append(row)
    wrong = [row["name"] for row in found if max(row["difference"], row["other"] or 0) > TOLERANCE]
    if options.table:
        text = options.table.read_text()
        head = text[: text.index("| architecture |")] if "| architecture |" in text else text
        options.table.write_text(head + table(found))
    sys.exit(f"past the tolerance: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
