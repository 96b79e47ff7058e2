"""Files to read, and what must be found in them: written by one process, read by another."""

import json
import random
import re

import diff_expect


class Cases:
    """Collects what was written into a folder, and writes it down as `cases.json`."""

    def __init__(self, folder):
        self.folder = folder
        self.cases = []
        self.group = ""

    def path(self, name):
        """A new path in the folder of the group: `name` with what is odd in it replaced."""
        folder = self.folder / re.sub(r"[^a-z0-9]+", "_", self.group.lower())
        folder.mkdir(exist_ok=True)
        stem, dot, suffix = name.rpartition(".")
        path = folder / (re.sub(r"[^A-Za-z0-9_.-]+", "_", stem) + dot + suffix)
        if path.exists():
            raise FileExistsError(path)
        return path

    def add(self, what, path, tensors, others=(), **rules):
        """A file and the tensors in it.

        Rules: `any_order`, the order does not matter; `allowed`, descriptions of tensors that may be listed besides;
        `suffix`, names may have something in front; `any_name`,
        its name does not matter; `may_refuse`, a clear refusal is as good; `root`, the root to list
        (else all of the file; None for the one that is taken unasked). If two tensors have one name, the file must be refused.
        """
        names = [tensor["name"] for tensor in tensors]
        rules["twice"] = len(set(names)) < len(names)
        self.cases.append(
            {"group": self.group, "what": what, "file": str(path), "tensors": tensors, "others": list(others), **rules}
        )

    def add_object(self, what, path, obj, protocol=2, **rules):
        """A file from which `obj` was loaded."""
        tensors, others = diff_expect.listing(obj, protocol)
        self.add(what, path, tensors, others, **rules)

    def broken(self, what, error):
        """Something could not be written: a failure, too."""
        text = "%s: %s" % (type(error).__name__, error)
        self.cases.append({"group": self.group, "what": what, "error": text})

    def write(self):
        """Write everything down."""
        (self.folder / "cases.json").write_text(json.dumps(self.cases), encoding="utf-8")


def seeded(*what):
    """A source of random numbers for one purpose."""
    return random.Random(repr(what))
