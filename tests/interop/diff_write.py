"""Standalone: writes the files of some parts into a folder, with what this PyTorch finds in them.

    python diff_write.py FOLDER PART...

Runs under another interpreter than the rest of this folder, too: PyTorch 1.13 is old enough to write what newer ones no
longer do. `cases.json` in the folder tells what was written. A part is a module `diff_PART` with `write(cases)`.
"""

import importlib
import sys
import traceback
import warnings
from pathlib import Path

import torch

from diff_case import Cases


def main():
    """Write every part; one that breaks off is written down as a failure."""
    folder, *parts = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(folder).resolve()
    folder.mkdir(parents=True)
    cases = Cases(folder)
    for part in parts:
        try:
            importlib.import_module("diff_" + part).write(cases)
        except Exception as error:
            traceback.print_exc()
            cases.broken("diff_%s broke off" % part, error)
    cases.write()


if __name__ == "__main__":
    main()
