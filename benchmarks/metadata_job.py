"""The metadata loads, run as a process of their own so that they share no interpreter with a filesystem.

    python metadata_job.py stat DIRECTORY COUNT              stat(2) of COUNT existing files, each once
    python metadata_job.py make DIRECTORY SECONDS PAUSE      open(O_CREAT|O_EXCL) and close, then unlink(2) of them all

Names are made beforehand and resolved against the directory's descriptor: the loop is one system call and its Python
call, about 1 µs beside the 50 µs and more of a request. The pause before the unlinks lets what the kernel knows of the
new files expire. Prints one JSON object: operation -> [operations, seconds].
"""

import json
import os
import sys
from itertools import islice
from time import perf_counter, sleep


def stat_files(directory: str, count: int) -> dict[str, tuple[int, float]]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    names = [f"f{number:06}" for number in range(count)]
    stat = os.stat
    begin = perf_counter()
    for name in names:
        stat(name, dir_fd=descriptor)
    took = perf_counter() - begin
    os.close(descriptor)
    return {"stat": (count, took)}


def make_files(directory: str, seconds: float, pause: float) -> dict[str, tuple[int, float]]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    names = (f"n{number:07}" for number in range(10_000_000))
    made: list[str] = []
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    begin = perf_counter()
    end = begin + seconds
    while perf_counter() < end:
        for name in islice(names, 64):
            os.close(os.open(name, flags, 0o644, dir_fd=descriptor))
            made.append(name)
    create_seconds = perf_counter() - begin
    sleep(pause)
    begin = perf_counter()
    for name in made:
        os.unlink(name, dir_fd=descriptor)
    unlink_seconds = perf_counter() - begin
    os.close(descriptor)
    return {"create": (len(made), create_seconds), "unlink": (len(made), unlink_seconds)}


def main() -> None:
    kind, directory, *numbers = sys.argv[1:]
    if kind == "stat":
        result = stat_files(directory, int(numbers[0]))
    else:
        result = make_files(directory, float(numbers[0]), float(numbers[1]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
