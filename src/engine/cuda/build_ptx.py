"""Compiles fold.cu to fold.ptx, which is committed. Needs no GPU:

    pip install nvidia-cuda-nvrtc-cu11==11.8.89
    python src/engine/cuda/build_ptx.py

An old compiler and an old architecture, on purpose: drivers take what is older than they are. PTX 7.8 needs a driver of CUDA 11.8 (520) or
later, and compute_52 a GPU of the year 2014 or later.
"""

import ctypes
import hashlib
from pathlib import Path

import nvidia.cuda_nvrtc

OPTIONS = [b"--gpu-architecture=compute_52", b"--fmad=false"]

libraries = Path(nvidia.cuda_nvrtc.__path__[0]) / "lib"
ctypes.CDLL(str(next(libraries.glob("libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
nvrtc = ctypes.CDLL(str(next(libraries.glob("libnvrtc.so*"))))


def text(program, kind):
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer)
    return buffer.value.decode()


here = Path(__file__).parent
program = ctypes.c_void_p()
source = (here / "fold.cu").read_bytes()
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"fold.cu", 0, None, None) == 0
failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
if failed:
    raise SystemExit(text(program, "ProgramLog"))
origin = f"// SHA-256 of fold.cu: {hashlib.sha256(source).hexdigest()}\n"
(here / "fold.ptx").write_text(origin + text(program, "PTX"))
