"""The volume file: its key slots, and what unlocks them (docs/encryption-format.md, "The volume file").

A VolumeFile is a value: nothing here changes one, it makes another. Secrets are Secret objects (locked, wiped); what
Python's libraries insist on making of them as bytes is wiped as soon as it has been used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from typing import Any, Final, Literal, NoReturn

from stackfs import mark
from stackfs.errors import ExitCode, StackfsError
from stackfs.filters.encryption._cipher import VolumeKeys, hkdf_sha256, unwrap, wrap
from stackfs.filters.encryption._secrets import Secret, wipe

VOLUME_FILE: Final = ".stackfs-encryption"
COPY: Final = ".stackfs-encryption.copy"
DIRECTORY_FILE: Final = ".stackfs-directory"
RESERVED: Final = ".stackfs-"

SUITES: Final = {"aes-256-gcm": 1, "chacha20-poly1305": 2, "aes-256-siv": 3}
FORMAT: Final = "stackfs encryption"
VERSION: Final = 1
LARGEST: Final = 1 << 20
SLOTS_MOST: Final = 32
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
KEYFILE_LEAST, KEYFILE_MOST = 32, 1 << 20
PASSPHRASE_MOST: Final = 512
SLOT_KEY: Final = 64

Kind = Literal["passphrase", "keyfile", "recovery"]


class VolumeError(StackfsError):
    """Something about an encrypted volume, in one line."""


def damaged(message: str) -> VolumeError:
    return VolumeError(message, ExitCode.DAMAGED)


@dataclasses.dataclass(frozen=True, slots=True)
class Argon2:
    """What a guess at a passphrase costs: memory in KiB, passes over it, lanes (threads)."""

    memory: int = 262144
    passes: int = 3
    lanes: int = 4

    def check(self) -> None:
        if not (1 <= self.passes <= 64 and 1 <= self.lanes <= 64 and 8 * self.lanes <= self.memory <= 4 << 20):
            raise VolumeError(
                "Argon2id takes 1 to 64 passes, 1 to 64 lanes, and 8 KiB a lane to 4 GiB of memory", ExitCode.USAGE
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Credential:
    """What a slot is opened with: a passphrase, the bytes of a key file, or the 32 of a recovery key."""

    kind: Kind
    secret: Secret
    derived: bool = False
    """`secret` is a slot's key already, which Argon2id has made of the passphrase."""

    def wipe(self) -> None:
        self.secret.wipe()

    def __enter__(self) -> Credential:
        return self

    def __exit__(self, *error: object) -> None:
        self.wipe()


def passphrase(data: bytearray) -> Credential:
    """Takes (and wipes) a passphrase. USAGE: empty, or longer than 512 bytes."""
    if not 1 <= len(data) <= PASSPHRASE_MOST:
        wipe(data)
        raise VolumeError(f"a passphrase has 1 to {PASSPHRASE_MOST} bytes", ExitCode.USAGE)
    return Credential("passphrase", Secret.taken_from(data))


def keyfile(path: str) -> Credential:
    """Reads a key file: 32 bytes to 1 MiB, of which every one counts."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = bytearray(KEYFILE_MOST + 1)
            length = 0
            while got := file.readinto(memoryview(data)[length:]):
                length += got
    except OSError as error:
        raise VolumeError(f"key file {path}: {error.strerror}", ExitCode.NOT_FOUND) from error
    try:
        if not KEYFILE_LEAST <= length <= KEYFILE_MOST:
            raise VolumeError(
                f"key file {path} has {length} bytes; one has 32 bytes to 1 MiB (make one with "
                f"head -c 64 /dev/urandom)",
                ExitCode.USAGE,
            )
        return Credential(
            "keyfile", hkdf_sha256(memoryview(data)[:length], b"\0", b"stackfs encryption 1 keyfile bytes", 64)
        )
    finally:
        wipe(data)


# Recovery keys ------------------------------------------------------------------------------------------------------


def recovery_text(key: Secret) -> str:
    """A recovery key as it is written down: 8 groups of 7 characters."""
    data = bytes(key) + hashlib.sha256(b"stackfs recovery" + bytes(key)).digest()[:3]
    number = int.from_bytes(data, "big")
    digits = "".join(ALPHABET[number >> 5 * (55 - i) & 31] for i in range(56))
    return "-".join(digits[i : i + 7] for i in range(0, 56, 7))


def recovery_key(data: bytearray) -> Credential:
    """What a recovery key says that was typed; wipes it. USAGE: mistyped."""
    number = count = 0
    for byte in data:
        digit = ALPHABET.find(chr(byte).upper().replace("I", "1").replace("L", "1").replace("O", "0"))
        if digit >= 0:
            number, count = number << 5 | digit, count + 1
    wipe(data)
    if count == 56:
        key = bytearray(number.to_bytes(35, "big"))
        if hashlib.sha256(b"stackfs recovery" + key[:32]).digest()[:3] == key[32:]:
            secret = Secret.taken_from(key[:32])
            wipe(key)
            return Credential("recovery", secret)
    raise VolumeError(
        "this is no recovery key: it has 8 groups of 7 characters, and its last ones prove the others; look for a "
        "character that was mistyped or left out",
        ExitCode.USAGE,
    )


# The volume file ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """One way to the master key."""

    number: int
    kind: Kind
    label: str
    created: int
    salt: bytes
    wrapped: bytes
    argon2: Argon2 | None

    def bound(self) -> dict[str, Any]:
        """What is authenticated with the master key: all but `wrapped`."""
        fields: dict[str, Any] = {
            "number": self.number,
            "kind": self.kind,
            "label": self.label,
            "created": self.created,
            "salt": self.salt.hex(),
        }
        if self.argon2 is not None:
            fields |= dataclasses.asdict(self.argon2)
        return fields


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeFile:
    """What a volume file says. Authentic only once it has been unlocked."""

    id: bytes
    suite: str
    names: Literal["encrypted", "plain"]
    created: int
    slots: tuple[Slot, ...]
    mac: bytes = b""

    def document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "features": [],
            "id": self.id.hex(),
            "suite": self.suite,
            "names": self.names,
            "created": self.created,
            "slots": [each.bound() | {"wrapped": each.wrapped.hex()} for each in self.slots],
        }

    def signed(self, keys: VolumeKeys) -> VolumeFile:
        return dataclasses.replace(self, mac=keys.authenticate(canonical(self.document())))

    def text(self) -> bytes:
        return json.dumps(self.document() | {"mac": self.mac.hex()}, indent=1, ensure_ascii=True).encode() + b"\n"

    def with_slot(self, master: Secret, credential: Credential, label: str, argon2: Argon2) -> VolumeFile:
        """One more slot. USAGE: there are 32 already."""
        if len(self.slots) >= SLOTS_MOST:
            raise VolumeError(f"all {SLOTS_MOST} key slots are taken: remove one", ExitCode.USAGE)
        number = next(each for each in range(SLOTS_MOST) if each not in {slot.number for slot in self.slots})
        slot = Slot(
            number,
            credential.kind,
            label,
            int(time.time()),
            os.urandom(32),
            b"",
            argon2 if credential.kind == "passphrase" else None,
        )
        with wrapping_key(slot, credential) as key:
            wrapped = wrap(key, self.associated(slot), master)
        slots = sorted((*self.slots, dataclasses.replace(slot, wrapped=wrapped)), key=lambda each: each.number)
        return dataclasses.replace(self, slots=tuple(slots))

    def without_slot(self, number: int) -> VolumeFile:
        """One slot less. NOT_FOUND: there is no such; USAGE: it is the last."""
        kept = tuple(each for each in self.slots if each.number != number)
        if len(kept) == len(self.slots):
            raise VolumeError(f"there is no key slot {number}", ExitCode.NOT_FOUND)
        if not kept:
            raise VolumeError("the last key slot stays: without it nobody could unlock the volume", ExitCode.USAGE)
        return dataclasses.replace(self, slots=kept)

    def associated(self, slot: Slot) -> list[bytes]:
        return [b"stackfs encryption 1 slot", self.id, canonical(slot.bound())]


@dataclasses.dataclass(frozen=True, slots=True)
class Unlocked:
    """An unlocked volume: the file is authentic, and the keys are in secret memory."""

    file: VolumeFile
    slot: Slot
    master: Secret
    keys: VolumeKeys


def canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def wrapping_key(slot: Slot, credential: Credential) -> Secret:
    if credential.derived:
        copy = Secret(len(credential.secret))
        memoryview(copy)[:] = memoryview(credential.secret)
        return copy
    if slot.argon2 is None:
        return hkdf_sha256(credential.secret, slot.salt, f"stackfs encryption 1 {slot.kind}".encode(), SLOT_KEY)
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    key = Secret(SLOT_KEY)
    settings = slot.argon2
    try:
        argon2id = Argon2id(
            salt=slot.salt,
            length=SLOT_KEY,
            iterations=settings.passes,
            lanes=settings.lanes,
            memory_cost=settings.memory,
        )
        argon2id.derive_into(credential.secret, memoryview(key))  # type: ignore[arg-type]  # any buffer will do
    except MemoryError:
        raise VolumeError(
            f"key slot {slot.number} takes {settings.memory // 1024} MiB of memory to unlock, which are not here"
        ) from None
    return key


def unlock(file: VolumeFile, credential: Credential) -> Unlocked:
    """Opens the first slot that the credential opens. WRONG_KEY: none; DAMAGED: the file was changed."""
    slot, key, master = _open_slot(file, credential)
    key.wipe()
    keys = VolumeKeys(master, file.id)
    if keys.authenticate(canonical(file.document())) != file.mac:
        raise damaged(
            f"the volume file {VOLUME_FILE} was changed since stackfs wrote it, and cannot be relied on: put an "
            "earlier copy of it back"
        )
    return Unlocked(file, slot, master, keys)


def derived(file: VolumeFile, credential: Credential) -> Credential:
    """The key of the slot that a credential opens, for an unlock() that costs no Argon2id any more. WRONG_KEY."""
    _, key, master = _open_slot(file, credential)
    master.wipe()
    return Credential(credential.kind, key, derived=True)


def _open_slot(file: VolumeFile, credential: Credential) -> tuple[Slot, Secret, Secret]:
    """The first slot that the credential opens, its key, and the master key."""
    tried = 0
    for slot in file.slots:
        if slot.kind != credential.kind:
            continue
        tried += 1
        key = wrapping_key(slot, credential)
        try:
            master = unwrap(key, file.associated(slot), slot.wrapped)
        except OSError as error:
            key.wipe()
            if error.errno != errno.EBADMSG:
                raise
            continue
        if len(master) != 32:
            break
        return slot, key, master
    names = {"passphrase": "passphrase", "keyfile": "key file", "recovery": "recovery key"}
    if not tried:
        raise VolumeError(f"this volume has no key slot for a {names[credential.kind]}", ExitCode.WRONG_KEY)
    raise VolumeError(f"the {names[credential.kind]} is wrong, or its key slot was changed", ExitCode.WRONG_KEY)


# Reading it ---------------------------------------------------------------------------------------------------------


class _NotOne(Exception):
    """Why a file is no volume file."""


def parse(data: bytes) -> VolumeFile:
    """A volume file. DAMAGED: it is none; UNSUPPORTED: of a later release."""
    try:
        return _parse(data)
    except _NotOne as error:
        raise damaged(f"the volume file is damaged: {error}") from None


def _parse(data: bytes) -> VolumeFile:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _NotOne("a member is there twice")
        return dict(pairs)

    def refuse(what: str) -> NoReturn:
        raise _NotOne(f"{what} is no number it has")

    try:
        document = json.loads(data.decode("ascii"), object_pairs_hook=unique, parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _NotOne(
            f"not the JSON it should be ({str(error).splitlines()[0] if str(error) else 'too deep'})"
        ) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _NotOne(f"it does not say that its format is {FORMAT!r}")
    version = _member(document, "version", int)
    if version != VERSION:
        raise VolumeError(
            f"the volume has version {version} of the format, and this release knows version {VERSION}: it needs a "
            "later one",
            ExitCode.UNSUPPORTED,
        )
    features = _member(document, "features", list)
    if features:
        raise VolumeError(
            f"the volume uses {', '.join(map(repr, features[:10]))}, which this release does not know: it needs a "
            "later one",
            ExitCode.UNSUPPORTED,
        )
    suite = _member(document, "suite", str)
    names = _member(document, "names", str)
    if suite not in SUITES or names not in ("encrypted", "plain"):
        raise _NotOne(f"it has no suite {suite!r}, or no names {names!r}")
    slots = _member(document, "slots", list)
    if not 1 <= len(slots) <= SLOTS_MOST:
        raise _NotOne(f"it has {len(slots)} key slots")
    _only(document, {"format", "version", "features", "id", "suite", "names", "created", "slots", "mac"})
    found = VolumeFile(
        id=_bytes(document, "id", 16),
        suite=suite,
        names="plain" if names == "plain" else "encrypted",
        created=_member(document, "created", int),
        slots=tuple(_slot(each) for each in slots),
        mac=_bytes(document, "mac", 32),
    )
    if len({each.number for each in found.slots}) < len(found.slots):
        raise _NotOne("two key slots have one number")
    return found


def _slot(value: object) -> Slot:
    if not isinstance(value, dict):
        raise _NotOne("a key slot is none")
    kind = _member(value, "kind", str)
    members = {"number", "kind", "label", "created", "salt", "wrapped"}
    argon2 = None
    if kind == "passphrase":
        members |= {"memory", "passes", "lanes"}
        argon2 = Argon2(_member(value, "memory", int), _member(value, "passes", int), _member(value, "lanes", int))
        try:
            argon2.check()
        except VolumeError as error:
            raise _NotOne(error.message) from None
    elif kind not in ("keyfile", "recovery"):
        raise _NotOne(f"a key slot is of kind {kind!r}")
    _only(value, members)
    number = _member(value, "number", int)
    if not 0 <= number < SLOTS_MOST:
        raise _NotOne(f"a key slot has number {number}")
    return Slot(
        number,
        kind,
        _member(value, "label", str),
        _member(value, "created", int),
        _bytes(value, "salt", 32),
        _bytes(value, "wrapped", 48),
        argon2,
    )


def _member(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if type(value) is not kind:
        raise _NotOne(f"{name} is missing, or not what it should be")
    return value


def _bytes(document: dict[str, Any], name: str, length: int) -> bytes:
    text = _member(document, name, str)
    with contextlib.suppress(ValueError):
        value = bytes.fromhex(text)
        if len(value) == length and value.hex() == text:
            return value
    raise _NotOne(f"{name} is not {length} bytes in hexadecimal digits")


def _only(document: dict[str, Any], members: set[str]) -> None:
    if more := sorted(set(document) - members):
        raise _NotOne(f"it has a member {more[0]!r}, which it should not have")


# In a directory -----------------------------------------------------------------------------------------------------


def open_directory(path: str) -> int:
    """A descriptor of the backing directory. NOT_FOUND."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise VolumeError(f"{path}: {error.strerror}", ExitCode.NOT_FOUND) from error


def lock(directory: int, path: str) -> None:
    """Holds the volume for this process as long as the descriptor is open. REFUSED: another one has it."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise VolumeError(
            f"{path} is in use: it is mounted, or another command works on it", ExitCode.REFUSED
        ) from None


def read_file(directory: int, name: str, limit: int = LARGEST) -> bytes:
    """A regular file of the directory. FileNotFoundError, OSError; VolumeError: it is none, or too large."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise damaged(f"{name} is not a file")
        data = b""
        while len(data) <= limit and (more := os.read(descriptor, limit + 1 - len(data))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise damaged(f"{name} is larger than it may be")
    return data


def load(directory: int, path: str) -> VolumeFile:
    """The directory's volume file, or its copy if that is missing or damaged. NOT_FOUND: it is no encrypted volume."""
    problem: VolumeError | None = None
    for name in (VOLUME_FILE, COPY):
        try:
            return parse(read_file(directory, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = problem or damaged(f"{path}/{name}: {error.strerror}")
        except VolumeError as error:
            if error.exit_code == ExitCode.UNSUPPORTED:
                raise
            problem = problem or VolumeError(f"{path}: {error.message}", error.exit_code)
    if problem is not None:
        raise problem
    raise VolumeError(
        f"{path} is not an encrypted volume: stackfs encryption init {path} makes one of an empty directory",
        ExitCode.NOT_FOUND,
    )


def write_file(directory: int, name: str, data: bytes, mode: int = 0o600) -> None:
    """Puts a file in its place as a whole, on the disk when it returns. OSError."""
    new = name + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    descriptor = os.open(
        new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory
    )
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def store(directory: int, file: VolumeFile) -> None:
    """Writes the volume file and its copy. OSError."""
    text = file.text()
    write_file(directory, VOLUME_FILE, text)
    write_file(directory, COPY, text)


def create(
    directory: int,
    path: str,
    *,
    suite: str,
    names: Literal["encrypted", "plain"],
    credentials: list[tuple[Credential, str]],
    argon2: Argon2,
) -> VolumeFile:
    """Makes an encrypted volume of an empty directory. REFUSED: it is one, or not empty. OSError."""
    argon2.check()
    present = os.listdir(directory)
    if VOLUME_FILE in present or (COPY in present and any(not name.startswith(RESERVED) for name in present)):
        raise VolumeError(f"{path} is an encrypted volume already", ExitCode.REFUSED)
    if others := sorted(name for name in present if not name.startswith(RESERVED) and name != "lost+found"):
        raise VolumeError(
            f"{path} is not empty ({others[0]}): make the volume in a new directory, mount it, and copy your files in",
            ExitCode.REFUSED,
        )
    with Secret.random(32) as master:
        file = VolumeFile(os.urandom(16), suite, names, int(time.time()), ())
        for credential, label in credentials:
            file = file.with_slot(master, credential, label, argon2)
        keys = VolumeKeys(master, file.id)
        file = file.signed(keys)
        if names == "encrypted":
            root = keys.build_directory(os.urandom(16), (file.id, b""))
            write_file(directory, DIRECTORY_FILE, root, 0o644)
        write_file(directory, mark.NAME, mark.text(frozenset({"encryption"})), 0o644)
        store(directory, file)
    return file
