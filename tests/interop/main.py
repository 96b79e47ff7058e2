"""Every check, in order. Started by `run`."""

import argparse
import shutil
import sys
import traceback
import warnings
from pathlib import Path

import check_archive
import check_convert
import check_convert_files
import check_convert_shapes
import check_cost
import check_differential
import check_dtypes
import check_folds
import check_graft
import check_inputs
import check_inspect
import check_large
import check_learn
import check_limits
import check_logits
import check_old_torch
import check_parity
import check_repeat
import check_replace
import check_shards
import check_sharing
import check_verify
import check_walkthrough
from report import Report
from tool import Tool

# In this order: some look at the files that earlier ones wrote.
PARTS = (
    check_inspect,
    check_folds,
    check_logits,
    check_verify,
    check_learn,
    check_parity,
    check_inputs,
    check_dtypes,
    check_sharing,
    check_replace,
    check_shards,
    check_convert,
    check_convert_files,
    check_convert_shapes,
    check_graft,
    check_walkthrough,
    check_archive,
    check_old_torch,
    check_differential,
    check_cost,
    check_repeat,
    check_large,
    check_limits,
)


def main():
    """Run the checks; the work files are kept if one failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--old-python")
    parser.add_argument("--without-old", action="store_true")
    options = parser.parse_args()

    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    warnings.filterwarnings("ignore", message="ComplexHalf support is experimental")
    report, tool = Report(), Tool(options.binary, options.work)

    for part in PARTS:
        try:
            if part is check_differential:
                part.main(report, tool, None if options.without_old else options.old_python)
            elif part is not check_old_torch:
                part.main(report, tool)
            elif not options.without_old:
                part.main(report, tool, options.old_python)
        except Exception as error:
            traceback.print_exc()
            report.fail(f"{part.__name__} broke off", error)

    if report.failed:
        print(f"work files are kept in {options.work}")
    else:
        shutil.rmtree(options.work)
    if options.without_old:
        print("not checked: torch 1.13 (--without-torch-1.13)")
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
