"""Counting checks: one line each, and the sum."""

import contextlib
import time


class Wrong(Exception):
    """What a check found to be wrong."""


def expect(condition, why):
    """Fail the check that is running unless `condition` holds."""
    if not condition:
        raise Wrong(why)


def equal(found, wanted, what):
    """Fail the check that is running unless both are equal."""
    expect(found == wanted, f"{what} is {found!r}, not {wanted!r}")


class Report:
    """Prints `ok  <what>` or `FAILED <what>: why` for each check."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    @contextlib.contextmanager
    def check(self, what):
        """Run the body as one check; an exception in it is its failure."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self.fail(what, error)
            return
        self.passed += 1
        seconds = time.monotonic() - start
        print(f"ok  {what}" + (f" ({seconds:.1f} s)" if seconds > 2 else ""), flush=True)

    def fail(self, what, error):
        """Count a failure."""
        self.failed += 1
        kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
        text = " | ".join(line.strip() for line in str(error).splitlines() if line.strip())
        print(f"FAILED {what}: {kind}{text[:2000]}", flush=True)

    def note(self, text):
        """Say something that is no check."""
        print(f"    {text}", flush=True)

    def close(self):
        """Print the sum, the last line of all; returns the exit code."""
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed or not self.passed else 0
