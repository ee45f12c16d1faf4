"""stackfs status: what every running volume reports of itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def add(app: typer.Typer) -> None:
    app.command("status", help="Show volumes, lanes, requests, open files and failed instances.")(status)


def status(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    volume: Annotated[
        str | None, typer.Option("-v", "--volume", metavar="VOLUME", help="This volume only (mountpoint or name).")
    ] = None,
) -> None:
    from stackfs.cli import tables
    from stackfs.cli.run import print_json, report
    from stackfs.errors import StackfsError
    from stackfs.filterlib.daemons import locate, running

    shown: list[dict[str, Any]] = []
    with running() as found:
        clients, problems = found
        if volume is not None:
            clients, problems = [locate(found, volume)[0]], []
        for client in clients:
            try:
                answer = client.call("status")
            except StackfsError as error:
                problems.append(error)
                continue
            hello = client.hello
            shown.append({
                "volume_name": hello.volume_name,
                "mountpoint": hello.mountpoint,
                "source": hello.source,
                "pid": client.pid,
                "uid": client.uid,
                "version": hello.version,
                "status": answer,
            })
    if json:
        print_json({"ok": not problems, "volumes": shown, "errors": [str(problem) for problem in problems]})
    else:
        if not shown and not problems:
            print("no volume is mounted")
        for index, each in enumerate(shown):
            if index:
                print()
            print(tables.escape(each["mountpoint"] or each["volume_name"]))
            rest = {key: value for key, value in each.items() if key not in ("mountpoint", "status")}
            print("\n".join(tables.outline(rest, 2) + tables.outline(each["status"], 2)))
        for problem in problems:
            report("stackfs", problem)
    if problems:
        raise typer.Exit(int(problems[0].exit_code))
