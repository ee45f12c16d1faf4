"""A process that answers on the control socket like a volume's daemon and mounts nothing.

    python fake_daemon.py RUNTIME_DIRECTORY VOLUME_NAME ANSWERS

ANSWERS: JSON, a result for each verb; {"error": ..., "status": ..., "exit_code": ...} below "!verb" is a refusal; "..."
never answers. Every request is appended to RUNTIME_DIRECTORY/../VOLUME_NAME.log. Ends after umount, or when stdin does.
"""

import json
import os
import sys
import threading

import trio

from stackfs import control, runtime_directory
from stackfs.errors import FltError, StackfsError


async def main() -> None:
    runtime_directory.ROOT, name, answers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    log = os.path.join(os.path.dirname(sys.argv[1]), f"{name}.log")

    async def handler(verb: str, arguments: dict[str, object]) -> object:
        with open(log, "a") as lines:
            lines.write(json.dumps([verb, arguments]) + "\n")
        if answers.get(verb) == "...":
            await trio.sleep_forever()
        refusal = answers.get("!" + verb)
        if refusal and "status" in refusal:
            raise FltError(refusal["status"], refusal["error"], refusal.get("exit_code", 4))
        if refusal:
            raise StackfsError(refusal["error"], refusal.get("exit_code", 1))
        if verb == "hello":
            where = answers.get("mountpoint", f"/mnt/{name}")
            return control.Hello(os.getpid(), os.geteuid(), name, where, "/srv", "0")
        if verb == "umount":
            nursery.cancel_scope.cancel()
        return answers.get(verb)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: control.serve(handler, name, task_status=task_status))
        print("ready", flush=True)
        threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    os.read(0, 1)
    os._exit(0)


if __name__ == "__main__":
    trio.run(main)
