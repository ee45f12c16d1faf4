"""Contexts and file names (docs/semantics.md B1, B2) on mounted drives, as Python filters use them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import Drive, filter_directory, run

# ---- contexts ------------------------------------------------------------------------------------------------------

KEEPS_CONTEXTS = '''
import threading
MANIFEST = {"name": "keeper", "altitude": "370500", "group": "FSFilter Activity Monitor", "filter": "Keeper",
            "options": {"log": {"type": "path", "required": True, "doc": "Where to."}}}

from stackfs.api import *

lock = threading.Lock()

def tell(path, line):
    with lock, open(path, "a") as log:
        print(line, file=log)

class Told:
    def tell_to(self, path, what):
        self.path, self.what = path, what
        tell(path, "made " + what)

    def cleanup(self):
        tell(self.path, "gone " + self.what)

class PerFile(FileContext):
    path = None
    def cleanup(self):
        tell(self.path, f"gone file {self.what}")

class PerHandle(StreamHandleContext):
    path = None
    def cleanup(self):
        tell(self.path, f"gone handle {self.what}")

class Keeper(Filter):
    contexts = (PerFile, PerHandle)
    operations = (Operation(IRP_MJ_READ, pre="pre_read"), Operation(IRP_MJ_CLOSE, post="post_close"))

    def pre_read(self, data, objects):
        for kind in (PerFile, PerHandle):
            context = data.ensure_context(kind)
            if context.path is None:
                context.path, context.what = self.options["log"], data.path
                tell(self.options["log"], f"made {kind.__name__} {data.path}")
        return FLT_PREOP_SUCCESS_NO_CALLBACK

    def post_close(self, data, objects, context, flags):
        tell(self.options["log"], "closed")
'''


def test_contexts_on_a_drive(drive: Callable[..., Drive], tmp_path: Path, lanes: str) -> None:
    """Hard links, a file without a name, detach before RELEASE, and unload: each context exactly once."""
    filters = filter_directory(tmp_path, keeper=KEEPS_CONTEXTS)
    log = tmp_path / "log"
    made = drive(f"filterdir={filters}", "filter=keeper", f"keeper.log={log}", "cache=strict")
    (made.src / "one").write_text("content")
    os.link(made.src / "one", made.src / "two")
    (made.src / "nameless").write_text("content")
    code = (
        "import os, sys, subprocess, time\n"
        "os.chdir(sys.argv[1])\n"
        "a, b, c = (os.open(name, os.O_RDONLY) for name in ('one', 'two', 'nameless'))\n"
        "os.unlink('nameless')\n"
        "for fd in (a, b, c): assert os.read(fd, 3) == b'con'\n"
        "os.close(a)\n"
        "end = time.monotonic() + 20\n"
        "while 'gone handle' not in open(sys.argv[2]).read(): assert time.monotonic() < end; time.sleep(0.01)\n"
        "subprocess.run([sys.argv[3], 'detach', 'keeper', sys.argv[1]], check=True, cwd='/')\n"
        "for fd in (b, c): assert os.read(fd, 4) == b'tent'\n"
    )
    done = run(sys.executable, "-c", code, made.mnt, log, Path(sys.executable).parent / "fltmc", check=False)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert [line for line in lines if line.startswith("made PerHandle")] == [
        "made PerHandle /one", "made PerHandle /two", "made PerHandle /nameless (deleted)",
    ]  # fmt: skip
    assert sum(line.startswith("made PerFile") for line in lines) == 2  # one inode has two names
    assert lines.index("closed") < lines.index("gone handle /one")
    assert sorted(line for line in lines if line.startswith("gone handle")) == [
        "gone handle /nameless (deleted)", "gone handle /one", "gone handle /two",
    ]  # fmt: skip
    last_handle = max(index for index, line in enumerate(lines) if line.startswith("gone handle"))
    files = [index for index, line in enumerate(lines) if line.startswith("gone file")]
    assert len(files) == 2 and min(files) > last_handle  # at the detach: open files first, then files
    made.fltmc("unload", "keeper")
    made.umount()
    assert log.read_text().splitlines() == lines


# ---- names ---------------------------------------------------------------------------------------------------------

ASKS_FOR_NAMES = '''
import threading
MANIFEST = {"name": "asker", "altitude": "370600", "group": "FSFilter Activity Monitor", "filter": "Asker",
            "options": {"log": {"type": "path", "required": True, "doc": "Where to."}}}

from stackfs.api import *

class Asker(Filter):
    operations = (Operation(IRP_MJ_CREATE, pre="see"), Operation(IRP_MJ_READ, pre="see"),
                  Operation(IRP_MJ_SET_INFORMATION, pre="see"))

    def see(self, data, objects):
        try:
            said = data.name_information().path
            if data.major == IRP_MJ_SET_INFORMATION and data.information_class in (
                    FileRenameInformation, FileRenameInformationEx):
                said += " to " + data.destination_name_information().path
        except NtStatusError as error:
            said = status_name(error.status)
        with open(self.options["log"], "a") as log:
            print(data.request, said, file=log)
        return FLT_PREOP_SUCCESS_NO_CALLBACK
'''


def test_names_on_a_drive(drive: Callable[..., Drive], tmp_path: Path, lanes: str) -> None:
    """Names of open files follow renames above them, hard links keep theirs, nameless files have their last."""
    filters = filter_directory(tmp_path, asker=ASKS_FOR_NAMES)
    log = tmp_path / "log"
    made = drive(f"filterdir={filters}", "filter=asker", f"asker.log={log}", "cache=strict")
    (made.src / "a" / "b").mkdir(parents=True)
    (made.src / "a" / "b" / "file").write_text("content")
    os.link(made.src / "a" / "b" / "file", made.src / "link")
    code = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "one, two = os.open('a/b/file', os.O_RDONLY), os.open('link', os.O_RDONLY)\n"
        "os.read(one, 1), os.read(two, 1)\n"
        "os.rename('a', 'c')\n"
        "os.read(one, 1)\n"
        "os.unlink('c/b/file'), os.unlink('link')\n"
        "os.read(one, 1)\n"
    )
    done = run(sys.executable, "-c", code, made.mnt, log, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in log.read_text().splitlines() if line.split()[0] in ("read", "rename", "rename2")]
    reads = [line.split(" ", 1)[1] for line in lines if line.startswith("read ")]
    assert reads == ["/a/b/file", "/link", "/c/b/file", "/link"]
    assert [line.split(" ", 1)[1] for line in lines if line.startswith("rename")] == ["/a", "/a to /c"]
