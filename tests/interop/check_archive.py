"""The .pth archive: what Python's zipfile and the options of torch.load make of it."""

import subprocess
import sys
import zipfile

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cases
from report import equal, expect
from tensors import load, same_state

ALIGNMENT = 64


def main(report, tool):
    """Two checks for each of some archives that other checks made."""
    ordinary = [cases.folded(tool, cases.named(name), ".pth") for name in ("lambda 0.1", "f16 target", "learned")]
    for path in [*ordinary, tool.work / "shared_out.pth", tool.work / "carried_out.pth"]:
        with report.check(f"{path.name}: a sound zip archive, records aligned, as torch.save lays it out"):
            archive(path)
        with report.check(f"{path.name}: torch.load with computed offsets, on the meta device, in fake mode"):
            loaders(path)


def data_offset(path, info):
    """Where an entry's data begins, by its local header."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def archive(path):
    """Checksums, alignment, and the records that PyTorch expects."""
    done = subprocess.run([sys.executable, "-m", "zipfile", "-t", path], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"python -m zipfile -t: {done.stderr}")
    with zipfile.ZipFile(path) as file:
        equal(file.testzip(), None, "the first damaged entry")
        infos = file.infolist()
        names = [info.filename for info in infos]
        root = names[0].partition("/")[0]
        equal(names[0], f"{root}/data.pkl", "the first entry")
        expect(len(set(names)) == len(names) and all(name.startswith(root + "/") for name in names), "odd entry names")
        equal(file.read(f"{root}/version"), b"3\n", "the version record")
        equal(file.read(f"{root}/byteorder"), b"little", "the byteorder record")
        offsets = {info.filename: data_offset(path, info) for info in infos}
    for info in infos:
        equal(info.compress_type, zipfile.ZIP_STORED, f"compression of {info.filename}")
        equal(offsets[info.filename] % ALIGNMENT, 0, f"misalignment of {info.filename}")
    reader = torch._C.PyTorchFileReader(str(path))
    equal(sorted(reader.get_all_records()), sorted(name.removeprefix(root + "/") for name in names), "PyTorch's records")


def with_computed_offsets(path):
    """torch.load that computes where each record is instead of looking, and works on the map of the file."""
    options = torch.utils.serialization.config.load
    options.calculate_storage_offsets = True
    try:
        return load(path, mmap=True)
    finally:
        options.calculate_storage_offsets = False


def loaders(path):
    """Every way of torch.load finds the same tensors."""
    wanted = load(path)
    same_state(with_computed_offsets(path), wanted)
    same_state(torch.load(path, weights_only=False), wanted)
    with open(path, "rb") as file:
        same_state(torch.load(file, weights_only=True), wanted)

    specs = {name: (tensor.dtype, tensor.shape, tensor.stride()) for name, tensor in wanted.items()}
    meta = load(path, map_location="meta")
    expect(all(tensor.is_meta for tensor in meta.values()), "tensors are not on the meta device")
    with FakeTensorMode():
        fake = torch.load(path, weights_only=True)
    # In both modes PyTorch notes where in the file each storage is.
    content = path.read_bytes()
    for what, found in (("meta device", meta), ("fake mode", fake)):
        equal({k: (t.dtype, t.shape, t.stride()) for k, t in found.items()}, specs, f"on the {what}, what is loaded")
        for name, tensor in found.items():
            stored = torch.empty(0, dtype=torch.uint8).set_(wanted[name].untyped_storage()).numpy().tobytes()
            at = tensor.untyped_storage()._checkpoint_offset
            expect(content[at : at + len(stored)] == stored, f"{what}: {name} is not at offset {at}")
