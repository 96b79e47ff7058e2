"""Running the program."""

import json
import subprocess
import time
from pathlib import Path

from report import Wrong, expect

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
EXPECTED = FIXTURES / "expected"
SAMPLE_EVERY = 0.004


class Tool:
    """The program, run from the repository's root, and a folder for what it writes."""

    def __init__(self, binary, work):
        self.binary = Path(binary).resolve()
        self.work = Path(work).resolve()

    def command(self, *args):
        """The command line as a list of strings."""
        return [str(self.binary), *map(str, args)]

    def start(self, *args):
        """Run it, however it ends."""
        return subprocess.run(self.command(*args), cwd=ROOT, capture_output=True, text=True, check=False)

    def run(self, *args, code=0):
        """Run it; fail unless it exits with `code`. Returns its standard output."""
        done = self.start(*args)
        if done.returncode != code:
            shown = " ".join(map(str, args))
            raise Wrong(f"exit code {done.returncode}, not {code}: {shown}: {done.stderr[-1500:]}")
        return done.stdout

    def fold(self, *args, out):
        """Fold into `out`, a path or a name in the work folder. Returns the path."""
        out = self.work / out
        self.run("fold", *args, "-o", out)
        return out

    def inspect(self, *args):
        """What `inspect --json` says."""
        return json.loads(self.run("inspect", "--json", *args))

    def measured(self, *args):
        """Run it; returns (seconds, the most anonymous memory in bytes that was seen while it ran)."""
        errors = self.work / "stderr.txt"
        with open(errors, "w+", encoding="utf-8") as stderr:
            start = time.monotonic()
            with subprocess.Popen(
                self.command(*args), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr
            ) as process:
                peak = 0
                while process.poll() is None:
                    peak = max(peak, anonymous(process.pid))
                    time.sleep(SAMPLE_EVERY)
            seconds = time.monotonic() - start
            stderr.seek(0)
            expect(process.returncode == 0, f"exit code {process.returncode}: {stderr.read()[-1500:]}")
        expect(peak > 0, "the memory of the process was never seen")
        return seconds, peak


def anonymous(pid):
    """Resident anonymous memory of a process in bytes; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
