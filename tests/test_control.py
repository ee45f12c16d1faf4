"""The control socket: protocol, trust and time limits, with real sockets and a handler that serves no volume."""

import contextlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from stackfs import control, runtime_directory, runtime_sockets
from stackfs.errors import ExitCode, FltError, NotAnswering, StackfsError

HELLO = {"pid": 1, "uid": 0, "volume_name": "data", "mountpoint": "/mnt/data", "source": "/srv/data", "version": "0"}
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it speaks as another user")


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directories of root and of all users, in the test's own directory."""
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "user").mkdir(mode=0o755)
    monkeypatch.setattr(runtime_directory, "ROOT", str(tmp_path / "run/stackfs"))
    monkeypatch.setattr(runtime_directory, "USERS", str(tmp_path / "user"))
    if os.geteuid() != 0:
        monkeypatch.setattr(runtime_directory, "path", lambda: str(tmp_path / "run/stackfs"))
    return tmp_path / "run/stackfs"


class Server(threading.Thread):
    """control.serve() on a trio loop in a thread of its own."""

    def __init__(self, handler: control.Handler, name: str) -> None:
        super().__init__(daemon=True)
        self.handler, self.name_ = handler, name
        self.ready = threading.Event()
        self.path = ""
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self.error = error
        finally:
            self.ready.set()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self.scope, self.token = nursery.cancel_scope, trio.lowlevel.current_trio_token()
            self.path = await nursery.start(
                lambda task_status: control.serve(self.handler, self.name_, task_status=task_status)
            )
            self.ready.set()

    def end(self) -> None:
        if self.is_alive():
            try:
                self.token.run_sync_soon(self.scope.cancel)
            except trio.RunFinishedError:
                pass
        self.join(10)
        assert not self.is_alive()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(handler: control.Handler, name: str = "data") -> Server:
        server = Server(handler, name)
        servers.append(server)
        server.start()
        assert server.ready.wait(10)
        return server

    yield start
    for server in servers:
        server.end()


async def echo(verb: str, arguments: dict[str, Any]) -> Any:
    return HELLO if verb == "hello" else {"verb": verb, "arguments": arguments}


def only_daemon() -> control.Client:
    client, = control.daemons()
    return client


# ---- the protocol ----------------------------------------------------------------------------------------------------

def test_requests_follow_each_other_on_one_connection(serve: Serve) -> None:
    serve(echo)
    with only_daemon() as client:
        assert client.hello == control.Hello(1, 0, "data", "/mnt/data", "/srv/data", "0")
        assert (client.pid, client.uid, client.own) == (os.getpid(), os.geteuid(), True)
        for number in range(3):
            assert client.call("load", name="audit", n=number)["arguments"] == {"name": "audit", "n": number}


def test_a_name_that_is_not_utf8_goes_there_and_back(serve: Serve) -> None:
    serve(echo)
    name = os.fsdecode(b"\xff\xfe name \n")
    with only_daemon() as client:
        assert client.call("load", name=name)["arguments"]["name"] == name


def test_a_refusal_keeps_status_exit_code_and_words(serve: Serve) -> None:
    async def refuse(verb: str, arguments: dict[str, Any]) -> Any:
        if verb == "hello":
            return HELLO
        if verb == "unload":
            raise FltError(0xC01C0010, "audit does not detach", ExitCode.REFUSED)
        if verb == "load":
            raise StackfsError("no", ExitCode.UNUSABLE)
        raise RuntimeError("a bug")

    serve(refuse)
    with only_daemon() as client:
        with pytest.raises(FltError, match="audit does not detach") as flt:
            client.call("unload", name="audit")
        assert (flt.value.status & 0xFFFFFFFF, flt.value.exit_code) == (0xC01C0010, ExitCode.REFUSED)
        with pytest.raises(StackfsError, match="no") as plain:
            client.call("load")
        assert plain.value.exit_code is ExitCode.UNUSABLE
        assert not isinstance(plain.value, FltError)
        with pytest.raises(StackfsError, match="internal error in the daemon: RuntimeError: a bug"):
            client.call("status")
        with pytest.raises(StackfsError, match="a bug"):    # and the daemon goes on
            client.call("status")


def test_an_answer_that_json_cannot_say_is_an_error_not_a_hang(serve: Serve) -> None:
    async def odd(verb: str, arguments: dict[str, Any]) -> Any:
        return {"hello": HELLO, "long": "x" * (control.MAX_MESSAGE + 1), "nan": float("nan")}[verb]

    serve(odd)
    with only_daemon() as client:
        for verb in ("long", "nan"):
            with pytest.raises(StackfsError, match="cannot be sent"):
                client.call(verb)


def test_rows_are_checked(serve: Serve) -> None:
    async def rows(verb: str, arguments: dict[str, Any]) -> Any:
        return {
            "hello": HELLO,
            "filters": [{"name": "audit", "instances": 1, "altitude": "385100", "frame": 0}],
            "instances": [{"filter": "audit", "volume": "data", "altitude": 5, "name": "audit"}],
            "volumes": [{"dos_name": "x" * 5000, "volume_name": "data"}],
        }[verb]

    serve(rows)
    with only_daemon() as client:
        assert client.rows("filters", control.FilterRow) == [control.FilterRow("audit", 1, "385100", 0)]
        for verb, kind in (("instances", control.InstanceRow), ("volumes", control.VolumeRow)):
            with pytest.raises(NotAnswering, match=f"wrong answer to {verb}"):
                client.rows(verb, kind)


def raw(server: Server) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(server.path)
    return connection


def received(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as stream:
        length, = struct.unpack(">I", stream.read(4))
        answer: dict[str, Any] = json.loads(stream.read(length))
        return answer


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"verb": 5}', b'{"verb": "x", "more": 1}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_request_is_refused_and_the_daemon_goes_on(serve: Serve, body: bytes) -> None:
    server = serve(echo)
    with raw(server) as connection:
        connection.sendall(struct.pack(">I", len(body)) + body)
        answer = received(connection)
        assert (answer["ok"], answer["exit_code"]) == (False, ExitCode.USAGE)
    only_daemon().close()


def test_a_request_that_is_too_long_is_refused(serve: Serve) -> None:
    with raw(serve(echo)) as connection:
        connection.sendall(struct.pack(">I", control.MAX_MESSAGE + 1))
        assert received(connection)["error"] == "the request is too long"
        assert connection.recv(1) == b""


def test_a_client_that_stalls_is_dropped_and_holds_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "RECEIVE_LIMIT", 0.2)
    with raw(serve(echo)) as connection:
        connection.sendall(b"\0\0")
        only_daemon().close()
        assert connection.recv(1) == b""


def test_an_idle_connection_is_dropped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_LIMIT", 0.1)
    with raw(serve(echo)) as connection:
        assert connection.recv(1) == b""


def test_a_client_that_leaves_does_not_cancel_what_it_asked_for(serve: Serve) -> None:
    begun, may_end, done = threading.Event(), threading.Event(), threading.Event()

    async def slow(verb: str, arguments: dict[str, Any]) -> Any:
        begun.set()
        await trio.to_thread.run_sync(may_end.wait, 10)
        done.set()

    with raw(serve(slow)) as connection:
        connection.sendall(control._frame({"verb": "unload", "arguments": {}}))
        assert begun.wait(10)
    may_end.set()
    assert done.wait(10)


def test_the_answer_to_umount_is_sent_though_it_ends_the_daemon(serve: Serve) -> None:
    async def ending(verb: str, arguments: dict[str, Any]) -> Any:
        if verb == "umount":
            server.scope.cancel()
        return HELLO if verb == "hello" else "gone"

    server = serve(ending)
    with only_daemon() as client:
        assert client.call("umount") == "gone"
    server.join(10)
    assert control.daemons() == []


# ---- the directory and the socket ------------------------------------------------------------------------------------

def test_directory_and_socket_are_the_owners_alone(serve: Serve, run_directory: Path) -> None:
    server = serve(echo, "a volume's name of any length " * 10)
    assert stat.S_IMODE(run_directory.stat().st_mode) == 0o700
    name, = os.listdir(run_directory)
    assert name == runtime_sockets.socket_name("a volume's name of any length " * 10, os.getpid())
    assert len(name) <= 24
    assert server.path == str(run_directory / name)
    assert stat.S_IMODE((run_directory / name).stat().st_mode) == 0o600
    server.end()
    assert os.listdir(run_directory) == []


def test_a_path_longer_than_sun_path_works(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120) / "stackfs"
    deep.parent.mkdir(mode=0o700)
    monkeypatch.setattr(runtime_directory, "path", lambda: str(deep))
    serve(echo)
    only_daemon().close()


def test_a_directory_that_others_can_reach_into_is_refused(run_directory: Path) -> None:
    run_directory.mkdir(mode=0o700)
    run_directory.chmod(0o750)
    with pytest.raises(StackfsError, match="has mode 0750") as refused:
        runtime_directory.opened(create=True)
    assert refused.value.exit_code is ExitCode.PERMISSION
    problems: list[StackfsError] = []
    assert control.daemons(problems) == []
    assert [each.exit_code for each in problems] == [ExitCode.PERMISSION]


def test_a_link_is_no_runtime_directory(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    run_directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StackfsError, match="cannot use"):
        runtime_directory.opened(create=True)


def test_a_base_that_everybody_can_write_is_refused(run_directory: Path) -> None:
    run_directory.parent.chmod(0o1777)
    with pytest.raises(StackfsError, match="is not safe for a control socket"):
        runtime_directory.opened(create=True)


@as_root
def test_another_users_directory_is_refused(run_directory: Path) -> None:
    run_directory.mkdir(mode=0o700)
    os.chown(run_directory, NOBODY, NOBODY)
    with pytest.raises(StackfsError, match=f"belongs to user {NOBODY}: it must be yours alone"):
        runtime_directory.opened(create=True)


def test_a_missing_directory_means_no_daemons() -> None:
    assert control.daemons() == []


def test_where_a_user_s_directory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    uid = os.getuid() if os.getuid() else 1000
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(runtime_directory, "USERS", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/mine")
    assert runtime_directory.path() == "/run/mine/stackfs"
    for bad, words in (("/tmp/x", "everybody can write"), ("/var/../tmp", "everybody can write"), ("run", "absolute")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", bad)
        with pytest.raises(StackfsError, match=words):
            runtime_directory.path()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(StackfsError, match="no place for the control socket: XDG_RUNTIME_DIR is not set"):
        runtime_directory.path()
    (tmp_path / str(uid)).mkdir()
    if os.getuid() == 0:
        with pytest.raises(StackfsError, match="no place for the control socket"):      # there, and somebody else's
            runtime_directory.path()
        os.chown(tmp_path / str(uid), uid, uid)
    assert runtime_directory.path() == f"{tmp_path}/{uid}/stackfs"


# ---- dead, silent and lying daemons ----------------------------------------------------------------------------------

def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_behind(directory: Path, name: str) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.bind(f"/proc/self/fd/{descriptor}/{name}")
        connection.listen()
    os.close(descriptor)


def test_a_dead_daemons_socket_is_removed_by_whoever_looks(run_directory: Path) -> None:
    left_behind(run_directory, runtime_sockets.socket_name("data", dead_pid()))
    left_behind(run_directory, runtime_sockets.socket_name("data", os.getpid()))    # its number in use again
    (run_directory / "not-ours").touch()
    assert control.daemons() == []
    assert os.listdir(run_directory) == ["not-ours"]


def test_a_new_daemon_removes_what_dead_ones_left(serve: Serve, run_directory: Path) -> None:
    published = runtime_sockets.socket_name("other", dead_pid())
    half_made = f".{runtime_sockets.socket_name('more', dead_pid())}.new"
    being_made = f".{runtime_sockets.socket_name('more', os.getppid())}.new"
    for name in (published, half_made, being_made):
        left_behind(run_directory, name)
    serve(echo)
    assert sorted(os.listdir(run_directory)) == sorted([being_made, runtime_sockets.socket_name("data", os.getpid())])


Impostor = Callable[[bytes | None], None]


@pytest.fixture
def impostor(run_directory: Path) -> Iterator[Impostor]:
    """Something that listens under a daemon's name and answers every connection with given bytes, or never (None)."""
    run_directory.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connections: list[socket.socket] = []

    def start(says: bytes | None) -> None:
        listener.bind(str(run_directory / runtime_sockets.socket_name("data", os.getpid())))
        listener.listen()

        def answer() -> None:
            with contextlib.suppress(OSError):          # the test has ended and closed them
                while True:
                    connection = listener.accept()[0]
                    connections.append(connection)
                    if says is not None:
                        connection.recv(1 << 16)
                        connection.sendall(says)
                        connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=answer, daemon=True).start()

    yield start
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    listener.close()
    for connection in connections:
        connection.close()


def framed(value: object) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack(">I", len(body)) + body


def test_a_daemon_that_does_not_answer_costs_a_time_limit(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "HELLO_LIMIT", 0.2)
    impostor(None)
    problems: list[StackfsError] = []
    before = time.monotonic()
    assert control.daemons(problems) == []
    assert time.monotonic() - before < 5
    problem, = problems
    assert problem.exit_code is ExitCode.NOT_ANSWERING
    assert f"a daemon does not answer (process {os.getpid()})" in str(problem)


@pytest.mark.parametrize(
    "says",
    [
        struct.pack(">I", control.MAX_MESSAGE + 1),
        framed(b"{"),
        framed(b"[" * 100_000),
        framed({"ok": "yes"}),
        framed({"ok": True, "result": HELLO | {"pid": "1"}}),
        framed({"ok": True, "result": HELLO | {"mountpoint": "/" * 5000}}),
        framed({"ok": True, "result": [HELLO]}),
        framed({"ok": False, "error": "x" * 10_000}),
        framed({"ok": False, "error": "x", "exit_code": 1 << 40}),
    ],
)
def test_an_answer_of_the_wrong_shape_is_not_believed(impostor: Impostor, says: bytes) -> None:
    impostor(says)
    problems: list[StackfsError] = []
    assert control.daemons(problems) == []
    assert [each.exit_code for each in problems] == [ExitCode.NOT_ANSWERING]


def test_an_unknown_exit_code_becomes_a_plain_failure(impostor: Impostor) -> None:
    impostor(framed({"ok": False, "error": "x", "exit_code": 77}))
    problems: list[StackfsError] = []
    assert control.daemons(problems) == []
    assert [each.exit_code for each in problems] == [ExitCode.FAILURE]


def test_what_is_no_socket_is_not_asked(run_directory: Path) -> None:
    run_directory.mkdir(mode=0o700)
    (run_directory / runtime_sockets.socket_name("file", os.getpid())).touch()
    (run_directory / runtime_sockets.socket_name("link", os.getpid())).symlink_to("/run/nowhere")
    problems: list[StackfsError] = []
    assert control.daemons(problems) == []
    assert ["not trusted" in str(each) for each in problems] == [True, True]


def test_a_daemon_that_ends_while_it_is_asked_is_no_problem(impostor: Impostor) -> None:
    impostor(b"")
    problems: list[StackfsError] = []
    assert (control.daemons(problems), problems) == ([], [])


def as_user(uid: int, action: Callable[[], None]) -> int:
    """Run the action in a child of another user; its exit status: 0 if it returned, 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            action()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@as_root
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_daemon_answers_its_owner_and_root_only(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(tempfile.mkdtemp(prefix="stackfs-test-"))      # tmp_path cannot be reached by others
    try:
        monkeypatch.setattr(runtime_directory, "ROOT", str(base / "stackfs"))
        server = serve(echo)
        for path in (base, base / "stackfs", Path(server.path)):
            path.chmod(0o777)

        def ask() -> None:
            with raw(server) as connection:
                assert received(connection) == {
                    "ok": False, "result": None, "error": "only the owner of the volume and root may ask",
                    "status": 0xC0000022, "exit_code": ExitCode.PERMISSION,
                }    # fmt: skip

        assert as_user(NOBODY, ask) == 0
    finally:
        shutil.rmtree(base)


def serving_as(uid: int, directory: Path, listener: socket.socket) -> int:
    """A child of another user that says hello; its process id. The kernel notes the user at listen()."""
    pid = os.fork()
    if pid == 0:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        listener.listen()
        while True:
            connection = listener.accept()[0]
            connection.recv(1 << 16)
            connection.sendall(framed({"ok": True, "result": HELLO | {"uid": 0}}))
            time.sleep(0.5)
            connection.close()
    time.sleep(0.2)
    return pid


@as_root
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_another_user_in_roots_directory_is_not_trusted(run_directory: Path) -> None:
    run_directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run_directory / runtime_sockets.socket_name("data", os.getpid())))
        pid = serving_as(NOBODY, run_directory, listener)
        try:
            problems: list[StackfsError] = []
            assert control.daemons(problems) == []
            assert [str(each) for each in problems] == [
                f"user {NOBODY} answers in user 0's runtime directory: not trusted"
            ]
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


@as_root
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_root_sees_every_users_daemons(tmp_path: Path) -> None:
    directory = tmp_path / f"user/{NOBODY}/stackfs"
    directory.parent.mkdir(mode=0o700)
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        entry = directory / runtime_sockets.socket_name("data", 1)
        listener.bind(str(entry))
        for path in (directory.parent, directory, entry):
            os.chown(path, NOBODY, NOBODY)
        pid = serving_as(NOBODY, directory, listener)
        try:
            with only_daemon() as client:
                assert (client.uid, client.own, client.pid) == (NOBODY, False, pid)     # whatever it says of itself
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    problems: list[StackfsError] = []
    os.chown(directory, 0, 0)
    assert control.daemons(problems) == []
    assert "belongs to user 0" in str(problems[0])


def test_a_client_imports_no_trio(run_directory: Path) -> None:
    code = (
        "import sys; from stackfs import control, runtime_directory;"
        f"runtime_directory.path = lambda: {str(run_directory)!r}; runtime_directory.USERS = '/nowhere';"
        "control.daemons(); sys.exit('trio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
