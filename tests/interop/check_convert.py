"""Every family of checkpoints: under timm's names, back again, and as auxiliaries, against timm and PyTorch."""

import torch

import families
import reference
from report import equal, expect
from tensors import describe, load, same_tensor

# What a refusal has to name, and the options that are then the way out.
DONOR = families.FIXTURES / "families" / "timm.safetensors"
TUBES = ("2 frames", ("--tubelet sum", "--drop 'patch_embed' --fill-from"))
POINTS = ("patch_embed.proj.weight", ("--fill-from",))
BEIT = ("relative_position_bias_table", ("--drop",))
POOLED = ("pre_logits/kernel", ("--drop",))
PATHWAY = ("cross_modal_scale", ("fold it first",))
REFUSED = {
    "videomae": (TUBES, ("--tubelet", "sum", "--img-size", 16)),
    "hf-videomae": (TUBES, ("--tubelet", "sum", "--img-size", 16)),
    "point-mae": (POINTS, ("--fill-from", DONOR)),
    "beit": (BEIT, ("--drop", "relative_position")),
    "hf-beit": (BEIT, ("--drop", "relative_position")),
    "jax_vit_21k": (POOLED, ("--drop", "pre_logits")),
    "pathway": (PATHWAY, ()),
}
# What stands before the names in a file, which no names of timm can tell.
PREFIXES = {
    "videomae_pretrain": "encoder.",
    "dino_student": "module.backbone.",
    "dino_teacher": "backbone.",
    "ijepa_encoder": "module.",
    "ijepa_target_encoder": "module.",
    "pointmae_pretrain": "module.MAE_encoder.",
    "pointmae_finetune": "module.",
}
# Tensors of timm's that are put together so that they do not come apart.
ONE_WAY = {
    "dinov2_registers": "reg_token",
    "hf_dinov2_registers": "reg_token",
    "hf_dinov2_registers_v5": "reg_token",
    "hf_siglip": "attn_pool.q.weight",
    "hf_siglip_vision": "attn_pool.q.weight",
    "jax_vit": "blocks.0.attn.qkv.weight",
    "jax_vit_21k": "blocks.0.attn.qkv.weight",
    "jax_big_vision": "blocks.0.attn.qkv.weight",
    "jax_siglip": "blocks.0.attn.qkv.weight",
    "mae_linear_probe": None,
    "pathway": None,
}
VIDEO = ("videomae", "hf-videomae")


def main(report, tool):
    """Each entry of families.json: converted, taken back, folded."""
    entries, outputs = families.entries(), families.outputs()
    worst = 0.0
    for name, entry in entries.items():
        with report.check(f"{name} --to timm: timm's model takes it and computes what the original does"):
            worst = max(worst, convert(tool, name, entry, outputs))
    report.note(f"largest difference of outputs: {worst:.1e}")
    for name, entry in entries.items():
        with report.check(f"{name} and back: its own names and bits"):
            back(tool, name, entry)
    target = load(DONOR)
    for name, entry in entries.items():
        with report.check(f"fold --aux {name}: W + lambda * A without converting first"):
            fold(tool, name, entry, target)
    for name, entry in entries.items():
        # JAX's arrays lie in another order; the others have a key of the file above their tensors.
        if entry["root"] is None and not name.startswith("jax"):
            with report.check(f"fold {name}: keeps its own names"):
                fold_into(tool, name, entry)


def run(tool, name, entry, *more):
    """Convert an entry to timm's names; returns the file."""
    out = tool.work / f"{name}.pth"
    tool.run("convert", *families.at_root(entry), "--to", "timm", "--heads", families.HEADS, *more, "-o", out, "--force")
    return out


def convert(tool, name, entry, outputs):
    """One entry under timm's names: refused first, where something has to be decided."""
    refusal = REFUSED.get(name) or REFUSED.get(entry["family"])
    options = ()
    if refusal:
        (named, ways), options = refusal
        done = tool.start("convert", *families.at_root(entry), "--to", "timm", "-o", tool.work / f"{name}.pth")
        equal(done.returncode, 2, "the exit code")
        for text in (named, *ways):
            expect(text in done.stderr, f"{text!r} is not in the message: {done.stderr}")
        expect(not (tool.work / f"{name}.pth").exists(), "something was written")
    if name == "pathway":
        plain = tool.fold(families.path(entry), out="plain_pathway.pth")
        out = tool.work / f"{name}.pth"
        tool.run("convert", plain, "--to", "timm", "-o", out)
    else:
        out = run(tool, name, entry, *options)
    found = torch.load(out, weights_only=True)
    for tensor, digest in entry["converted"].items():
        if entry["timm_args"] is not None or tensor.startswith(families.TRUNK):
            if name != "mae_linear_probe" or not tensor.startswith("head."):
                equal(describe(found[tensor])["sha256"], digest, f"the hash of {tensor}")
    if entry["timm_args"] is not None:
        equal(set(found) - {"head.bias"}, set(entry["converted"]) - {"head.bias"}, "the names")
        model = families.build(entry["timm_class"], entry["timm_args"])
        model.load_state_dict(found, strict=True)
        with torch.inference_mode():
            wanted = outputs[f"{entry['outputs_of']}/output"]
            return families.near(model(outputs[f"inputs/{entry['timm_input']}"]), wanted, "the output")
    if "beit_args" in entry:
        return beit(entry, found, outputs)
    return trunk(entry, found, outputs)


def trunk(entry, found, outputs):
    """What blocks, norm and head make of the original's tokens."""
    of = {key: outputs[f"{entry['outputs_of']}/{key}"] for key in entry["tensors"]}
    args = {**entry["trunk_args"], "qkv_bias": True}
    if entry["family"] == "point-mae":
        args["num_classes"] = 5
    model = families.build(entry["timm_class"], args)
    model.load_state_dict({k: v for k, v in found.items() if k.startswith(families.TRUNK)}, strict=False)
    if "head_eps" in entry:
        model.fc_norm.eps = entry["head_eps"]
    with torch.inference_mode():
        x = of["tokens"]
        for block in model.blocks:
            x = block(x + of["positions"] if "positions" in of else x)
        worst = families.near(x, of["blocks"], "the tokens behind the blocks")
        x = model.norm(x)
        if "features" in of:
            worst = max(worst, families.near(x, of["features"], "the features"))
        if "output" in of:
            worst = max(worst, families.near(model.forward_head(x), of["output"], "the output"))
    return worst


def beit(entry, found, outputs):
    """timm's Beit with the converted tensors, and the tables of positions that had to be left out."""
    state = {}
    for name, tensor in found.items():
        if name.endswith("attn.qkv.bias"):
            q, k, v = tensor.chunk(3)
            expect(not k.any(), f"the key's part of {name} is not zero")
            stem = name.removesuffix("qkv.bias")
            state |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
        else:
            state[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = tensor
    tables = [t for name, t in sorted(families.original(entry).items()) if name.endswith("relative_position_bias_table")]
    shared = len(tables) == 1
    names = ["rel_pos_bias"] if shared else [f"blocks.{block}.attn" for block in range(len(tables))]
    state |= {f"{at}.relative_position_bias_table": table for at, table in zip(names, tables)}
    model = families.build("Beit", entry["beit_args"])
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        wanted = outputs[f"{entry['outputs_of']}/output"]
        return families.near(model(outputs[f"inputs/{entry['input']}"]), wanted, "the output")


def family(name, entry):
    """The family whose names the file itself has."""
    gated = "-swiglu" if "swiglu" in name else ""
    return entry["family"] + gated + ("-5" if name.endswith("_v5") else "")


def source(name, entry):
    """The tensors that a conversion back has to give."""
    found = {key: value for key, value in families.original(entry).items() if key not in entry["dropped"]}
    if entry["family"] in (*VIDEO, "point-mae", "beit", "hf-beit"):
        left = ("patch_embed", "cls_", "encoder.first_conv", "encoder.second_conv", "pos_embed.", "MAE_decoder")
        left += ("decoder_pos_embed", "increase_dim", "mask_token")
        found = {key: v for key, v in found.items() if entry["family"] != "point-mae" or not any(l in key for l in left)}
    if entry["family"] == "dino":
        found = {key: value for key, value in found.items() if "head." not in key}
    return found


def back(tool, name, entry):
    """To timm's names and back to its own: of video models directly, since frames that were added up do not come apart."""
    out = tool.work / f"{name}.back.pth"
    via = tool.work / f"{name}.pth"
    given = (via, "--family", "timm")
    if entry["family"] in VIDEO:
        given = families.at_root(entry)
    elif entry["family"] == "point-mae":
        given = (*given, "--keep", "^blocks|^norm", "--drop", "qkv.bias$")
    elif entry["family"] in ("beit", "hf-beit"):
        given = (*families.at_root(entry), "--drop", "relative_position")
    args = ["convert", *given, "--to", family(name, entry), "-o", out]
    if name in ONE_WAY:
        if ONE_WAY[name]:
            done = tool.start(*args)
            equal(done.returncode, 2, "the exit code")
            expect(ONE_WAY[name] in done.stderr, f"{ONE_WAY[name]} is not in {done.stderr}")
        return
    if name in PREFIXES:
        args += ["--add-prefix", PREFIXES[name]]
    wanted = source(name, entry)
    if name.startswith("hf_") and not any(key.startswith(module(entry)) for key in wanted):
        args += ["--rename", f"s/^{module(entry)}//"]
    tool.run(*args)
    found = load(out)
    if entry["family"] in VIDEO:
        extra = {key: value for key, value in families.original(entry).items() if "patch_embed" in key and key in found}
        wanted |= extra
    equal(sorted(found), sorted(wanted), "the names")
    for key, tensor in wanted.items():
        same_tensor(key, found[key], tensor)


def module(entry):
    """What transformers puts before the names of the encoder in a larger model."""
    modules = {"hf-ast": "audio_spectrogram_transformer", "hf-clip": "vision_model", "hf-siglip": "vision_model"}
    return modules.get(entry["family"], entry["family"].split("-")[1].replace("swiglu", "")) + "."


def fold(tool, name, entry, target):
    """The file itself as auxiliary of a model under timm's names."""
    aux = torch.load(tool.work / f"{name}.pth", weights_only=True)
    if any(aux[key].shape != tensor.shape for key, tensor in target.items() if reference.layer_of(key) and key in aux):
        # SwiGLU has other layers in its MLPs.
        options, rule = ("--layers", "qkv,proj"), lambda block, kind: 0.3 if kind in ("qkv", "proj") else None
    else:
        options, rule = (), reference.constant(0.3)
    root = ("--aux-root", entry["root"]) if entry["root"] else ()
    given = families.path(entry)
    if name == "pathway":
        given, root = tool.work / "plain_pathway.pth", ()
    for suffix in (".pth", ".safetensors"):
        out = tool.fold(DONOR, "--aux", given, *root, "--lambda", "0.3", *options, "--force", out=f"fold_{name}{suffix}")
        found, wanted = load(out), reference.fold(target, [(aux, rule)])
        equal(sorted(found), sorted(wanted), "the names")
        for key, tensor in wanted.items():
            same_tensor(key, found[key], tensor)


def fold_into(tool, name, entry):
    """timm's model as auxiliary of a file that keeps its names and whatever else it holds."""
    layers = () if "swiglu" not in name else ("--layers", "qkv,proj")
    out = tool.fold(families.path(entry), "--aux", DONOR, "--lambda", "0.3", *layers, "--force", out="into.safetensors")
    found, before = load(out), families.original(entry)
    equal(sorted(found), sorted(before), "the names")
    changed = {key for key in found if not torch.equal(found[key], before[key])}
    expect(all("decoder" not in key and "text_model" not in key for key in changed), f"{sorted(changed)} changed")
    # Under timm's names it is the fold of what it was under these.
    mapped = tool.work / "into.timm.pth"
    options = (REFUSED.get(name) or REFUSED.get(entry["family"]) or ((), ()))[1]
    tool.run("convert", out, "--to", "timm", "--heads", families.HEADS, *options, "-o", mapped, "--force")
    rule = reference.constant(0.3) if not layers else lambda block, kind: 0.3 if kind in ("qkv", "proj") else None
    wanted = reference.fold(torch.load(tool.work / f"{name}.pth", weights_only=True), [(load(DONOR), rule)])
    after = torch.load(mapped, weights_only=True)
    equal(sorted(after), sorted(wanted), "the names in timm")
    expect(changed, "nothing changed")
    for key, tensor in wanted.items():
        same_tensor(key, after[key], tensor)
