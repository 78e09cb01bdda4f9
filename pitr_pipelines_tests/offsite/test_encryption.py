"""Encryption to public keys: what `age` opens, of a size known beforehand, in constant memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr_pipelines.errors import ArtifactDamaged, SettingsError
from pitr_pipelines.offsite import encryption
from pitr_pipelines.offsite.encryption import (
    Encryptor,
    Identities,
    Recipients,
    WrongKey,
    decrypt,
    encrypted_room,
    encrypted_size,
    fits,
    generate_identity,
    parse_identities,
    parse_recipients,
)

SSH_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust"
EDGES = (0, 1, 65535, 65536, 65537, 131072, 131073, 200_000)


@cache
def pair(number: int) -> tuple[str, str]:
    return generate_identity()


def recipients(count: int = 1) -> Recipients:
    return parse_recipients([pair(number)[1] for number in range(count)])


def identities(number: int = 0) -> Identities:
    return parse_identities(pair(number)[0])


def encrypt(content: bytes, to: Recipients) -> bytes:
    encryptor = Encryptor(io.BytesIO(content), to)
    try:
        return read_all(encryptor)
    finally:
        encryptor.close()


def read_all(encryptor: Encryptor) -> bytes:
    return b"".join(iter(lambda: encryptor.read(10_000), b""))


def opened(sealed: bytes, keys: Identities) -> bytes:
    sink = io.BytesIO()
    decrypt(io.BytesIO(sealed), sink, keys, what="base.tar.age")
    return sink.getvalue()


class Endless:
    """A source without an end, that says how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, size: int = -1, /) -> bytes:
        self.reads += 1
        return bytes(size)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", EDGES)
def test_the_size_is_exact_once_the_header_is_known_and_never_more_than_the_room(
    size: int, count: int
) -> None:
    to = recipients(count)
    encryptor = Encryptor(io.BytesIO(bytes(size)), to)
    known = encrypted_size(size, encryptor.header_length())
    sealed = read_all(encryptor)
    encryptor.close()

    assert len(sealed) == known
    assert 0 <= encrypted_room(size, to) - known <= 256


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=3000), st.integers(1, 3), st.integers(0, 140_000))
def test_what_was_encrypted_comes_back_for_every_recipient(text: bytes, count: int, more: int) -> None:
    content = text + bytes(more)
    sealed = encrypt(content, recipients(count))

    assert len(sealed) <= encrypted_room(len(content), recipients(count))
    assert all(opened(sealed, identities(number)) == content for number in range(count))


def test_a_header_that_is_too_long_is_drawn_again_and_nothing_of_the_content_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Half of what pyrage draws is longer than this.
    monkeypatch.setattr(encryption, "_GREASE_BYTES", 110)
    content = os.urandom(300_000)

    for _ in range(20):
        sealed = encrypt(content, recipients())
        assert len(sealed) <= encrypted_room(len(content), recipients())
        assert opened(sealed, identities()) == content


def test_a_reader_that_stops_early_leaves_no_thread_behind_and_no_more_is_read() -> None:
    source = Endless()
    before = threading.active_count()
    encryptor = Encryptor(source, recipients())
    assert len(encryptor.read(1000)) > 0

    encryptor.close()

    assert threading.active_count() == before
    # It had read ahead by what the pipe holds, and no further.
    assert source.reads * 8192 < 1024 * 1024


def test_one_that_was_never_read_can_be_closed() -> None:
    before = threading.active_count()

    Encryptor(Endless(), recipients()).close()

    assert threading.active_count() == before


@pytest.mark.parametrize("after", [0, 100_000, 1_000_000])
def test_what_goes_wrong_in_the_source_is_raised_as_it_is(after: int) -> None:
    class Failing:
        left = after

        def read(self, size: int = -1, /) -> bytes:
            if self.left <= 0:
                raise ArtifactDamaged("base.tar changed", remedy="Look.")
            self.left -= size
            return bytes(size)

    encryptor = Encryptor(Failing(), recipients())
    with pytest.raises(ArtifactDamaged, match=r"base\.tar changed"):
        read_all(encryptor)
    encryptor.close()


def test_another_key_is_told_from_a_damaged_file() -> None:
    sealed = encrypt(bytes(200_000), recipients())
    damaged = bytearray(sealed)
    damaged[len(sealed) // 2] ^= 1

    with pytest.raises(WrongKey, match=r"base\.tar\.age is encrypted to other keys"):
        opened(sealed, identities(1))
    for bad in (bytes(damaged), sealed[:-1], sealed[:70_000], sealed[:100], b"", b"no age file at all"):
        with pytest.raises(ArtifactDamaged, match=r"base\.tar\.age cannot be decrypted"):
            opened(bad, identities())


def test_the_first_bytes_tell_whether_a_key_fits() -> None:
    beginning = encrypt(bytes(200_000), recipients(2))[:2048]

    assert fits(identities(0), beginning)
    assert fits(identities(1), beginning)
    assert not fits(identities(2), beginning)
    with pytest.raises(ArtifactDamaged):
        fits(identities(0), b"something else")


def test_what_goes_wrong_where_it_is_written_is_raised_as_it_is() -> None:
    class Full:
        def write(self, data: bytes, /) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        decrypt(io.BytesIO(encrypt(bytes(100), recipients())), Full(), identities(), what="base.tar.age")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no public key"),
        (["age1nonsense"], "'age1nonsense' is no public key"),
        (["someone@example.com"], "is no public key"),
        (["ssh-ed25519 AAAA"], "is no public key"),
        (["ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY="], "is no public key"),
        ([pair(0)[1], pair(0)[1]], "twice"),
    ],
)
def test_a_public_key_that_cannot_be_used_is_named_at_once(texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_recipients(texts)


def test_a_secret_key_among_the_public_ones_is_refused_and_not_shown() -> None:
    secret = pair(0)[0]

    with pytest.raises(SettingsError, match="a secret key stands where") as refused:
        parse_recipients([secret])

    assert secret not in str(refused.value)
    assert secret not in repr(parse_identities(secret))


def test_a_key_file_that_cannot_be_used_is_refused_and_not_shown() -> None:
    half = pair(0)[0][:-4]
    for text in (half, "# only a comment\n", "", pair(0)[1], "-----BEGIN OPENSSH PRIVATE KEY-----\n"):
        with pytest.raises(SettingsError) as refused:
            parse_identities(text)
        assert half not in str(refused.value)


def test_ssh_keys_can_be_recipients_too() -> None:
    to = parse_recipients([SSH_PUBLIC, pair(0)[1]])

    assert opened(encrypt(b"rows", to), identities()) == b"rows"


@pytest.fixture
def age() -> str:
    found = shutil.which("age")
    if found is None:
        if os.environ.get("PITR_REQUIRE_AGE") == "1":
            pytest.fail("age is not installed, and PITR_REQUIRE_AGE=1 asks for it")
        pytest.skip("age is not installed; pyrage's own decryption is tested above")
    return found


def test_the_standard_age_program_opens_it(age: str, tmp_path: Path) -> None:
    content = os.urandom(200_001)
    (tmp_path / "base.tar.age").write_bytes(encrypt(content, recipients(2)))
    (tmp_path / "key.txt").write_text(f"# public key: {pair(1)[1]}\n{pair(1)[0]}\n")

    done = subprocess.run(
        [age, "-d", "-i", tmp_path / "key.txt", tmp_path / "base.tar.age"], capture_output=True, check=True
    )

    assert done.stdout == content


def test_what_the_standard_age_program_wrote_is_opened_here(age: str) -> None:
    done = subprocess.run([age, "-r", pair(0)[1]], input=b"from age", capture_output=True, check=True)

    assert opened(done.stdout, identities()) == b"from age"
