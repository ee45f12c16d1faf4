"""The metadata loads, in a process of their own so that they share no interpreter with a filesystem.

    python metadata_job.py DIRECTORY SIDE ARCHIVE MANY NEW

Reads the name of a job a line, does it in DIRECTORY, and answers with one line of JSON: how many operations, and the
seconds they took. Names are made beforehand and resolved against a directory's descriptor: a loop is one system call
and its Python call, about 1 µs beside the tens of a request.

    stat, open_read_close   each of the MANY files in DIRECTORY/many once
    readdir                 DIRECTORY/many listed ten times; an operation is a name
    create, unlink          NEW files in DIRECTORY/new-SIDE: open(O_CREAT|O_EXCL) and close; unlink(2)
    unpack, remove          ARCHIVE by tar -x into DIRECTORY/tree-SIDE; rm -r of what is in there
"""

import json
import os
import subprocess
import sys
from time import perf_counter

LISTINGS = 10
NEW_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def stat(many: int, names: list[str]) -> tuple[int, float]:
    call = os.stat
    begin = perf_counter()
    for name in names:
        call(name, dir_fd=many)
    return len(names), perf_counter() - begin


def open_read_close(many: int, names: list[str]) -> tuple[int, float]:
    begin = perf_counter()
    for name in names:
        file = os.open(name, os.O_RDONLY, dir_fd=many)
        os.read(file, 4096)
        os.close(file)
    return len(names), perf_counter() - begin


def readdir(directory: str) -> tuple[int, float]:
    count = 0
    begin = perf_counter()
    for _ in range(LISTINGS):
        with os.scandir(directory) as entries:
            for _ in entries:
                count += 1
    return count, perf_counter() - begin


def create(new: int, names: list[str]) -> tuple[int, float]:
    begin = perf_counter()
    for name in names:
        os.close(os.open(name, NEW_FLAGS, 0o644, dir_fd=new))
    return len(names), perf_counter() - begin


def unlink(new: int, names: list[str]) -> tuple[int, float]:
    begin = perf_counter()
    for name in names:
        os.unlink(name, dir_fd=new)
    return len(names), perf_counter() - begin


def command(*words: str) -> tuple[int, float]:
    begin = perf_counter()
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return 1, perf_counter() - begin


def main() -> None:
    directory, side, archive, many_count, new_count = sys.argv[1:]
    place, tree = os.path.join(directory, f"new-{side}"), os.path.join(directory, f"tree-{side}")
    os.makedirs(place, exist_ok=True)
    os.makedirs(tree, exist_ok=True)
    many = os.open(os.path.join(directory, "many"), os.O_RDONLY | os.O_DIRECTORY)
    new = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    there = [f"f{number:06}" for number in range(int(many_count))]
    made = [f"n{number:06}" for number in range(int(new_count))]
    for line in sys.stdin:
        job = line.strip()
        try:
            if job == "stat":
                operations, seconds = stat(many, there)
            elif job == "open_read_close":
                operations, seconds = open_read_close(many, there)
            elif job == "readdir":
                operations, seconds = readdir(os.path.join(directory, "many"))
            elif job == "create":
                operations, seconds = create(new, made)
            elif job == "unlink":
                operations, seconds = unlink(new, made)
            elif job == "unpack":
                operations, seconds = command("tar", "-xf", archive, "-C", tree)
            else:
                operations, seconds = command("rm", "-r", *(entry.path for entry in os.scandir(tree)))
        except subprocess.CalledProcessError as error:
            print(json.dumps({"error": error.stderr.decode(errors="replace").strip().split("\n")[0]}), flush=True)
        except OSError as error:
            print(json.dumps({"error": str(error)}), flush=True)
        else:
            print(json.dumps({"operations": operations, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
