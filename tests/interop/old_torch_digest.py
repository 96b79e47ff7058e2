"""Standalone, for an old PyTorch: loads each file named on the command line and prints its tensors as JSON.

Needs nothing but torch, and runs under another interpreter than the rest of this folder.
"""

import ctypes
import hashlib
import json
import sys

import torch


def describe(name, tensor):
    """Name, type, shape and SHA-256 of a tensor."""
    whole = tensor.contiguous()
    content = ctypes.string_at(whole.data_ptr(), whole.numel() * whole.element_size()) if whole.numel() else b""
    dtype = str(tensor.dtype).replace("torch.", "")
    return {"name": name, "dtype": dtype, "shape": list(tensor.shape), "sha256": hashlib.sha256(content).hexdigest()}


def main():
    """Print {"torch": version, "files": {file: [tensor, ...]}}; a file that cannot be loaded has a text instead."""
    files = {}
    for path in sys.argv[1:]:
        try:
            state = torch.load(path, weights_only=True)
            files[path] = [describe(name, tensor) for name, tensor in state.items()]
        except Exception as error:  # the caller reports it
            files[path] = "%s: %s" % (type(error).__name__, error)
    json.dump({"torch": torch.__version__, "files": files}, sys.stdout)


main()
