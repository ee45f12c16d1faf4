"""`stackfs encryption`: volumes are made, unlocked by each kind of slot, looked at and recovered; what is wrong is one
line and a named exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
from pathlib import Path

import encryption_reader as reader
import pytest
from conftest import STACKFS, run
from encryption_drive import at_a_terminal

from stackfs import mark
from stackfs.cli import stackfs_main
from stackfs.errors import ExitCode, StackfsError
from stackfs.filters.encryption import cli, passphrase, speed
from stackfs.filters.encryption import volume as volumes
from stackfs.filters.encryption._secrets import Secret, unlocked_bytes, wipe

CHEAP = ("--argon2-memory", "1", "--argon2-passes", "1")


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """Passphrase files, and a place for a volume."""
    (tmp_path / "pass").write_text("one phrase\n")
    (tmp_path / "other").write_text("another\n")
    (tmp_path / "wrong").write_text("one phrase \n")
    (tmp_path / "key").write_bytes(bytes(range(64)))
    return tmp_path


def encryption(*words: str | Path, code: int = 0) -> str:
    """Runs the command in this process; what it printed, or its one line of error."""
    shown, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
        got = stackfs_main.main(["encryption", *map(str, words)])
    assert got == code, told.getvalue() + shown.getvalue()
    if code:
        assert len(told.getvalue().splitlines()) == 1 and told.getvalue().startswith("stackfs: "), told.getvalue()
        return told.getvalue()
    assert told.getvalue() == ""
    return shown.getvalue()


@pytest.fixture(autouse=True)
def core_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands forbid them for their process, which is the tests'."""
    monkeypatch.setattr(cli, "no_core_dumps", lambda: None)


@pytest.fixture
def made(at: Path) -> Path:
    """An encrypted volume; its recovery key is in the file `recovery`."""
    told = encryption("init", at / "volume", "--passfile", at / "pass", *CHEAP)
    (at / "recovery").write_text("".join(re.findall(r"^    ([0-9A-Z-]+)$", told, re.MULTILINE)))
    return at / "volume"


def test_what_init_makes(at: Path, made: Path) -> None:
    assert sorted(os.listdir(made)) == sorted([mark.NAME, volumes.VOLUME_FILE, volumes.COPY, volumes.DIRECTORY_FILE])
    text = (made / volumes.VOLUME_FILE).read_bytes()
    assert text == (made / volumes.COPY).read_bytes()
    assert stat.S_IMODE((made / volumes.VOLUME_FILE).stat().st_mode) == 0o600
    assert (made / mark.NAME).read_text() == "stackfs volume 1\nneeds encryption\n"
    master, file = reader.unlock(text, "passphrase", b"one phrase")
    assert reader.unlock(text, "recovery", reader.recovery_key((at / "recovery").read_text()))[0] == master
    keys = reader.Keys(master, bytes.fromhex(file["id"]))
    keys.directory((made / volumes.DIRECTORY_FILE).read_bytes(), keys.id, b"")
    assert b"one phrase" not in text and master.hex().encode() not in text
    again = encryption("init", made, "--passfile", at / "pass", *CHEAP, code=ExitCode.REFUSED)
    assert "already" in again
    (at / "full").mkdir()
    (at / "full" / "file").touch()
    assert "not empty" in encryption("init", at / "full", "--passfile", at / "pass", *CHEAP, code=ExitCode.REFUSED)
    encryption(
        "init",
        at / "plain",
        "--passfile",
        at / "pass",
        "--plain-names",
        "--no-recovery-key",
        "--suite",
        "aes-256-siv",
        *CHEAP,
    )
    assert volumes.DIRECTORY_FILE not in os.listdir(at / "plain")
    shown = json.loads(encryption("info", at / "plain", "--json", "--passfile", at / "pass"))
    assert (shown["names"], shown["suite"], shown["authentic"]) == ("plain", "aes-256-siv", True)
    assert [each["kind"] for each in shown["slots"]] == ["passphrase"]


def test_what_opens_a_volume(at: Path, made: Path) -> None:
    """Each way to give a passphrase, each kind of slot."""
    good = "authentic"
    assert good in encryption("info", made, "--passfile", at / "pass")
    assert good in encryption("info", made, "--extpass", f"cat '{at}/pass'")
    with open(at / "pass", "rb") as file:
        assert good in encryption("info", made, "--passfd", str(file.fileno()))
    assert "not be" not in encryption("info", made)
    assert "wrong" in encryption("info", made, "--passfile", at / "wrong", code=ExitCode.WRONG_KEY)
    assert "no key slot" in encryption("info", made, "--keyfile", at / "key", code=ExitCode.WRONG_KEY)
    unlocked = ("--passfile", at / "pass")
    encryption("slots", made, "--add", "keyfile", "--new-keyfile", at / "key", "--label", "stick", *unlocked)
    assert good in encryption("info", made, "--keyfile", at / "key")
    encryption("slots", made, "--add", "passphrase", "--new-passfile", at / "other", "--keyfile", at / "key", *CHEAP)
    assert good in encryption("info", made, "--passfile", at / "other")
    listed = json.loads(encryption("slots", made, "--json"))
    assert [(each["number"], each["kind"], each["label"]) for each in listed] == [
        (0, "passphrase", ""),
        (1, "recovery", ""),
        (2, "keyfile", "stick"),
        (3, "passphrase", ""),
    ]
    encryption("slots", made, "--remove", "0", "--passfile", at / "other")
    encryption("info", made, "--passfile", at / "pass", code=ExitCode.WRONG_KEY)
    assert "no key slot 0" in encryption(
        "slots", made, "--remove", "0", "--passfile", at / "other", code=ExitCode.NOT_FOUND
    )
    encryption("slots", made, "--remove", "1", "--passfile", at / "other")
    encryption("slots", made, "--remove", "2", "--passfile", at / "other")
    assert "last" in encryption("slots", made, "--remove", "3", "--passfile", at / "other", code=ExitCode.USAGE)


def test_passwd_and_recover(at: Path, made: Path) -> None:
    before = (made / volumes.VOLUME_FILE).read_bytes()
    master = reader.unlock(before, "passphrase", b"one phrase")[0]
    encryption("passwd", made, "--passfile", at / "pass", "--new-passfile", at / "other", *CHEAP)
    encryption("info", made, "--passfile", at / "pass", code=ExitCode.WRONG_KEY)
    text = (made / volumes.VOLUME_FILE).read_bytes()
    assert reader.unlock(text, "passphrase", b"another")[0] == master and text == (made / volumes.COPY).read_bytes()
    (at / "mistyped").write_text((at / "recovery").read_text()[:-1] + "?")
    words = ("--new-passfile", at / "pass", *CHEAP)
    assert "mistyped" in encryption("recover", made, "--recovery-file", at / "mistyped", *words, code=ExitCode.USAGE)
    (made / volumes.VOLUME_FILE).unlink()
    encryption("recover", made, "--recovery-file", at / "recovery", *words)
    encryption("info", made, "--passfile", at / "other", code=ExitCode.WRONG_KEY)
    assert reader.unlock((made / volumes.VOLUME_FILE).read_bytes(), "passphrase", b"one phrase")[0] == master


def test_a_damaged_volume_file(at: Path, made: Path) -> None:
    file, copy = made / volumes.VOLUME_FILE, made / volumes.COPY
    good = file.read_bytes()
    document = json.loads(good)
    encryption("info", at, "--passfile", at / "pass", code=ExitCode.NOT_FOUND)
    file.write_bytes(good[:100])
    assert "authentic" in encryption("info", made, "--passfile", at / "pass")  # the copy
    copy.unlink()
    assert "damaged" in encryption("info", made, "--passfile", at / "pass", code=ExitCode.DAMAGED)
    changes: list[tuple[dict[str, object], ExitCode]] = [
        ({"suite": "aes-256-siv"}, ExitCode.DAMAGED),
        ({"names": "plain"}, ExitCode.DAMAGED),
        ({"created": 5}, ExitCode.DAMAGED),
        ({"suite": "rot13"}, ExitCode.DAMAGED),
        ({"slots": document["slots"][:1]}, ExitCode.DAMAGED),
        ({"id": "00" * 16}, ExitCode.WRONG_KEY),
        ({"mac": "00" * 32}, ExitCode.DAMAGED),
        ({"more": 1}, ExitCode.DAMAGED),
        ({"version": 2}, ExitCode.UNSUPPORTED),
        ({"features": ["compression"]}, ExitCode.UNSUPPORTED),
        ({"slots": [document["slots"][0] | {"memory": 2048}]}, ExitCode.WRONG_KEY),
        ({"slots": [document["slots"][0] | {"memory": 1 << 40}]}, ExitCode.DAMAGED),
    ]
    for change, code in changes:
        file.write_text(json.dumps(document | change))
        encryption("info", made, "--passfile", at / "pass", code=code)
    for text in (b"", b"{", b"[" * 100_000, b"\xff\xfe", good + b"x", good.replace(b'"id"', b'"mac"')):
        file.write_bytes(text)
        encryption("info", made, "--passfile", at / "pass", code=ExitCode.DAMAGED)


@pytest.mark.parametrize(
    "words",
    [
        ("--passfile", "nothing"),
        ("--passfile", "empty"),
        ("--passfile", "long"),
        ("--extpass", "false"),
        ("--extpass", "no-such-program"),
        ("--extpass", "'"),
        ("--passfd", "77"),
        ("--keyfile", "pass"),
        ("--passfile", "pass", "--extpass", "true"),
    ],
)
def test_passphrases_that_are_none(at: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(at)
    (at / "empty").touch()
    (at / "long").write_text("x" * 600)
    with pytest.raises(AssertionError, match="stackfs: "):
        encryption("init", at / "v", *CHEAP, *words)
    assert not (at / "v").exists() or os.listdir(at / "v") == []


def test_nobody_to_ask(at: Path) -> None:
    done = run("setsid", "-w", STACKFS, "encryption", "init", at / "v", *CHEAP, check=False)
    assert (
        done.returncode == ExitCode.USAGE
        and done.stderr.startswith("stackfs: there is no terminal")
        and os.listdir(at / "v") == []
    )


def test_a_person_is_asked_without_echo(at: Path) -> None:
    """On a terminal, twice for a new passphrase; what is typed is not shown."""
    words = (STACKFS, "encryption", "init", at / "volume", "--no-recovery-key", *CHEAP)
    code, shown = at_a_terminal(*words, typed=(b"typed phrase", b"typed phrase"))
    assert code == 0, shown
    assert b"typed" not in shown and shown.count(b"passphrase") == 2
    reader.unlock((at / "volume" / volumes.VOLUME_FILE).read_bytes(), "passphrase", b"typed phrase")


def test_recovery_keys_as_people_type_them() -> None:
    key = Secret.random(32)
    text = volumes.recovery_text(key)
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{7}-){7}[0-9A-HJKMNP-TV-Z]{7}", text) and reader.recovery_key(
        text
    ) == bytes(key)
    for typed in (text, text.lower(), text.replace("-", " "), text.replace("1", "l").replace("0", "o"), f"  {text}\t"):
        assert bytes(volumes.recovery_key(bytearray(typed.encode())).secret) == bytes(key)
    for place in range(0, len(text), 3):
        if text[place] != "-":
            other = text[:place] + ("7" if text[place] != "7" else "8") + text[place + 1 :]
            with pytest.raises(StackfsError):
                volumes.recovery_key(bytearray(other.encode()))


def test_a_volume_in_use_is_left_alone(at: Path) -> None:
    (at / "volume").mkdir()
    descriptor = volumes.open_directory(str(at / "volume"))
    volumes.lock(descriptor, "volume")
    assert "in use" in encryption("init", at / "volume", "--passfile", at / "pass", *CHEAP, code=ExitCode.REFUSED)
    os.close(descriptor)


def test_secrets_are_wiped() -> None:
    data = bytearray(b"a secret")
    secret = Secret.taken_from(data)
    view = memoryview(secret)
    assert data == bytes(8) and bytes(secret) == b"a secret" and "secret" not in repr(secret).replace("<Secret>", "")
    with secret:
        pass
    assert bytes(view) == bytes(8) and len(secret) == 0
    text = bytes(bytearray(b"some bytes"))
    wipe(text)
    assert text == bytes(10)
    with pytest.raises(ValueError):
        Secret(513)
    credential = passphrase.Source(passfile="/dev/null")
    with pytest.raises(StackfsError):
        credential.credential("")
    kept = [Secret.random(32) for _ in range(1000)]
    assert len({bytes(each) for each in kept}) == 1000 and unlocked_bytes() >= 0


def test_secret_memory_is_locked_and_not_dumped() -> None:
    """As the kernel says: the flags of the mapping that a secret lies in; in a child process too, as a daemon is."""
    secret = Secret.random(32)
    assert safe(secret)
    child = os.fork()
    if child == 0:
        os._exit(0 if safe(secret) and safe(Secret.random(32)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def safe(secret: Secret) -> bool:
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(memoryview(secret).cast("B")))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
            return "dd" in flags and ("lo" in flags or unlocked_bytes() > 0)
    raise AssertionError("the mapping was not found")


def test_speed(at: Path, made: Path) -> None:
    rows = json.loads(encryption("speed", made, "--seconds", "0.05", "--json"))
    assert {each["blocks"] for each in rows} == {1, 32, 256} and len({each["suite"] for each in rows}) == 1
    assert all(each["encrypt"] > 1e6 and each["decrypt"] > 1e6 for each in rows)
    assert "aes-256-siv" in encryption("speed", "--seconds", "0.05")
    assert len(speed.measure(["aes-256-gcm"], 0.01)) == 3


def test_help_names_every_command(at: Path) -> None:
    told = encryption("--help")
    for command in ("init", "passwd", "slots", "info", "recover", "speed"):
        assert command in told
