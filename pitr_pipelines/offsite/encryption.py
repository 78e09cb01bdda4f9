"""Encryption to public keys, in the age format (age-encryption.org/v1).

Whoever encrypts needs no secret: the machine that makes backups holds public keys only, and what it
wrote is opened by this module or by the standard `age` program. Memory is constant, whatever the size.

The age format in bytes: a header, a nonce of 16, and for each 64 KiB (at least once) 16 more than the
content. The header depends on the recipients, but for one thing: pyrage puts a stanza of random length
into it ("grease", which readers must ignore). So the size of what comes out is known exactly once the
header is, and before that only how much room it needs at most. A header that were larger than its room is
thrown away and drawn again.
Source: https://c2sp.org/age
"""

from __future__ import annotations

import importlib
import io
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pitr_pipelines.errors import ArtifactDamaged, PitrError, SettingsError

_CHUNK_BYTES = 64 * 1024
_TAG_BYTES = 16
_NONCE_BYTES = 16
_GREASE_BYTES = 256
"""The room that a header has for what pyrage adds at random; up to 200 were seen in 60000."""
_PIPE_CHUNKS = 4
_LAST_LINE = b"\n--- "


class WrongKey(PitrError):
    """What was encrypted cannot be opened with the keys that are here. Nothing was fetched but its head."""

    exit_code = 13


class Readable(Protocol):
    """Something that bytes are read from."""

    def read(self, size: int = ..., /) -> bytes: ...


class Writable(Protocol):
    """Something that bytes are written to."""

    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True)
class Recipients:
    """The public keys that each can open what is encrypted, and how long their header is without grease."""

    names: tuple[str, ...]
    header_bytes: int
    keys: tuple[Any, ...] = field(repr=False, compare=False)

    @property
    def header_room(self) -> int:
        """How many bytes a header may have."""
        return self.header_bytes + _GREASE_BYTES


@dataclass(frozen=True)
class Identities:
    """Secret keys. They show up in no text that this makes of them."""

    keys: tuple[Any, ...] = field(repr=False)


def generate_identity() -> tuple[str, str]:
    """Make a new key pair; return the secret key (`AGE-SECRET-KEY-1…`) and the public one (`age1…`)."""
    identity = _pyrage().x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def parse_recipients(texts: Sequence[str]) -> Recipients:
    """Read public keys: `age1…`, or SSH keys (`ssh-ed25519 …`, `ssh-rsa …`).

    Raises SettingsError that names the one which cannot be used; a secret key is refused unprinted.
    """
    if not texts:
        raise SettingsError("there is no public key to encrypt to", remedy="Name at least one, `age1…`.")
    names = tuple(text.strip() for text in texts)
    for name in names:
        if name.upper().startswith("AGE-SECRET-KEY-") or "PRIVATE KEY" in name:
            raise SettingsError(
                "a secret key stands where the public keys are named that the off-site copy is encrypted to",
                remedy="Put its public key there (`age1…`). Whoever has read the settings may have read the "
                "secret key: make a new pair with `pitr offsite keygen`.",
            )
    if len(set(names)) != len(names):
        raise SettingsError("a public key is named twice", remedy="Name each one once.")
    keys = tuple(_recipient(name) for name in names)
    try:
        sample = _pyrage().encrypt(b"", list(keys))
    except _pyrage().EncryptError as error:
        raise SettingsError(
            f"these public keys cannot be used together: {error}", remedy="Name keys of one kind only."
        ) from None
    return Recipients(names, _without_grease(sample[: _header_length(sample)]), keys)


def parse_identities(text: str) -> Identities:
    """Read a file of secret keys as `age-keygen` writes it, or an SSH private key without passphrase.

    Raises SettingsError, which never contains the key.
    """
    remedy = "Give the file that `pitr offsite keygen` or `age-keygen` wrote: a line AGE-SECRET-KEY-1…"
    if "PRIVATE KEY-----" in text:
        try:
            return Identities((_pyrage().ssh.Identity.from_buffer(text.encode()),))
        except _pyrage().IdentityError:
            raise SettingsError(
                "the SSH private key cannot be read, or has a passphrase", remedy=remedy
            ) from None
    lines = [line.strip() for line in text.splitlines()]
    keys = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            try:
                keys.append(_pyrage().x25519.Identity.from_str(line))
            except _pyrage().IdentityError:
                raise SettingsError(
                    f"line {number} of the key file is no secret key", remedy=remedy
                ) from None
    if not keys:
        raise SettingsError("the key file holds no secret key", remedy=remedy)
    return Identities(tuple(keys))


def encrypted_size(plain_bytes: int, header_bytes: int) -> int:
    """Return exactly how many bytes come out for so many that go in, with a header of that length."""
    chunks = max(1, -(-plain_bytes // _CHUNK_BYTES))
    return header_bytes + _NONCE_BYTES + plain_bytes + chunks * _TAG_BYTES


def encrypted_room(plain_bytes: int, recipients: Recipients) -> int:
    """Return how many bytes can come out at most; never more than 256 too many."""
    return encrypted_size(plain_bytes, recipients.header_room)


class Encryptor:
    """An encrypted file that is read from, while it is made from `source`.

    pyrage pushes what it has encrypted; here it pushes, in a thread of its own, into a pipe that holds a
    few pieces. What goes wrong in `source` is raised, as it is, by `read`. Close it, or it stays.
    """

    def __init__(self, source: Readable, recipients: Recipients) -> None:
        self._pipe = _Pipe(recipients.header_room)
        self._source = _Source(source)
        self._rest = b""
        self._thread = threading.Thread(
            target=self._run, args=(list(recipients.keys),), name="pitr-encrypt", daemon=True
        )
        self._thread.start()

    def header_length(self) -> int:
        """Return the length of the header, with which the size of everything is known."""
        if not self._rest:
            self._rest = self._pipe.take()
        return _header_length(self._rest)

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, and none at the end."""
        data = self._rest or self._pipe.take()
        self._rest = data[size:]
        return data[:size]

    def close(self) -> None:
        """Stop, wherever it is; nothing of `source` is read afterwards."""
        self._pipe.close()
        self._thread.join()

    def _run(self, keys: list[Any]) -> None:
        try:
            while True:
                try:
                    _pyrage().encrypt_io(self._source, self._pipe, keys)
                    break
                except (_pyrage().EncryptError, OSError):
                    # Its text is all that pyrage keeps of an error in our own code.
                    if not self._pipe.header_refused:
                        raise
                    self._source.rewind()
                    self._pipe.header_refused = False
        except BaseException as error:
            self._pipe.end(self._source.error or error)
        else:
            self._pipe.end(None)


def decrypt(source: Readable, sink: Writable, identities: Identities, *, what: str) -> None:
    """Decrypt all of `source` into `sink`, in pieces; each is authentic before it is written.

    `what` names the file in errors. Raises WrongKey, or ArtifactDamaged if it was changed or cut. What
    goes wrong in `source` or `sink` is raised as it is.
    """
    reading, writing = _Source(source, hold=False), _Sink(sink)
    try:
        _pyrage().decrypt_io(reading, writing, list(identities.keys))
    except (_pyrage().DecryptError, OSError) as error:
        original = reading.error or writing.error
        if original is not None:
            raise original from None
        if "No matching keys" in str(error):
            raise WrongKey(
                f"{what} is encrypted to other keys than the one given",
                remedy="Give the secret key that belongs to a public key which was in the settings on the "
                "day of that envelope.",
            ) from None
        raise ArtifactDamaged(
            f"{what} cannot be decrypted: it was changed or cut off ({error})",
            remedy="Fetch it again; if that does not help, take another envelope.",
        ) from None


def fits(identities: Identities, beginning: bytes) -> bool:
    """Tell from the first bytes of an encrypted file (its header, at least) whether a key opens it.

    Raises ArtifactDamaged if that is no such header.
    """
    try:
        decrypt(io.BytesIO(beginning), io.BytesIO(), identities, what="this file")
    except WrongKey:
        return False
    except ArtifactDamaged:
        if not beginning.startswith(b"age-encryption.org/v1\n") or _LAST_LINE not in beginning:
            raise
    return True


class _Source:
    """Reads for pyrage, which forgets what kind of error came up. At first it can begin again."""

    def __init__(self, source: Readable, *, hold: bool = True) -> None:
        self._source = source
        self._held = bytearray() if hold else None
        self._again = b""
        self.error: BaseException | None = None

    def read(self, size: int, /) -> bytes:
        if self._again:
            data, self._again = self._again[:size], self._again[size:]
            return data
        try:
            data = self._source.read(size)
        except BaseException as error:
            self.error = error
            raise
        if self._held is not None:
            self._held += data
            if len(self._held) > 4 * _CHUNK_BYTES:
                self._held = None  # the header is out long before
        return data

    def rewind(self) -> None:
        assert self._held is not None, "the header came after more than 256 KiB"
        self._again = bytes(self._held)


class _Sink:
    def __init__(self, sink: Writable) -> None:
        self._sink = sink
        self.error: BaseException | None = None

    def write(self, data: bytes, /) -> int:
        try:
            return self._sink.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """pyrage calls it at the end."""


class _Pipe:
    """What passes from the thread that encrypts to whoever reads. Either may stop at any time."""

    def __init__(self, header_room: int) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._beginning: bytes | None = b""
        self._header_room = header_room
        self.header_refused = False
        self._closed = self._ended = False
        self._error: BaseException | None = None

    def write(self, data: bytes, /) -> int:
        if self._beginning is not None:
            # Nothing goes out before the header is whole, and as short as was promised.
            self._beginning += data
            if _header_length(self._beginning) > self._header_room:
                self._beginning = b""
                self.header_refused = True
                raise BrokenPipeError
            if not _header_length(self._beginning):
                return len(data)
            piece, self._beginning = self._beginning, None
        else:
            piece = data
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._pieces) < _PIPE_CHUNKS)
            if self._closed:
                raise BrokenPipeError
            self._pieces.append(piece)
            self._changed.notify_all()
        return len(data)

    def flush(self) -> None:
        """pyrage calls it at the end."""

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._pieces.clear()
            self._changed.notify_all()

    def take(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pieces or self._ended)
            if self._pieces:
                self._changed.notify_all()
                return self._pieces.popleft()
            if self._error is not None:
                raise self._error
            if self._closed:
                raise ValueError("this was closed")
            return b""


def _pyrage() -> Any:
    """Return pyrage, which has no types, and which nothing loads that does not encrypt."""
    return importlib.import_module("pyrage")


def _recipient(name: str) -> Any:
    try:
        kind = _pyrage().x25519 if name.startswith("age1") else _pyrage().ssh
        return kind.Recipient.from_str(name)
    except _pyrage().RecipientError:
        raise SettingsError(
            f"{name[:80]!r} is no public key that can be encrypted to",
            remedy="Write an age key (`age1…`, from `pitr offsite keygen` or age-keygen) or an SSH key "
            "(`ssh-ed25519 …`, `ssh-rsa …`), copied whole. Keys of age plugins cannot be used.",
        ) from None


def _header_length(beginning: bytes) -> int:
    """Return the length of the header at the beginning of a file; 0 if it is not all there."""
    last = beginning.find(_LAST_LINE)
    end = beginning.find(b"\n", last + len(_LAST_LINE)) if last >= 0 else -1
    return end + 1


def _without_grease(header: bytes) -> int:
    """Return the length of a header but for the stanzas that mean nothing."""
    kept = 0
    counts = True
    for line in header.splitlines(keepends=True):
        if line.startswith((b"-> ", b"--- ")):
            counts = not line.split()[1].endswith(b"-grease") or line.startswith(b"--- ")
        kept += len(line) if counts else 0
    return kept
