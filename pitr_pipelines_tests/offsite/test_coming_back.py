"""Listing and fetching what lies off-site, against a real store; the artifacts are made up."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState, write_record
from pitr_pipelines.errors import ArtifactDamaged, BadRequest, PitrError
from pitr_pipelines.offsite import ranges
from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.bring import bring, choose_wanted
from pitr_pipelines.offsite.encryption import (
    Identities,
    Recipients,
    WrongKey,
    generate_identity,
    parse_identities,
    parse_recipients,
)
from pitr_pipelines.offsite.envelope import EnvelopePlan, plan_envelope
from pitr_pipelines.offsite.keys import make_key_file, read_key_files
from pitr_pipelines.offsite.overview import everything_of, look, reach_of, shelf_of
from pitr_pipelines.offsite.shelf import open_shelf
from pitr_pipelines.offsite.stage import AnotherCopy, Stage
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.lost_scene import get_bytes, put, put_bytes
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.offsite.scenes import MADE_AT, TODAY, fill, put_bundle
from pitr_pipelines_tests.wal_files import hour_of

DATABASES = ("order-db", "users")
TOMORROW = TODAY + timedelta(days=1)


@dataclass(frozen=True)
class Sent:
    layout: Layout
    open_store: StoreMaker
    secret: str
    recipients: Recipients

    @property
    def identities(self) -> Identities:
        return parse_identities(self.secret)

    def send(
        self, day: date, *, encrypted: bool = True, delivered: EnvelopePlan | None = None
    ) -> EnvelopePlan:
        plan = plan_envelope(
            find_artifacts(self.layout, DATABASES).artifacts,
            day=day,
            made_at=MADE_AT + (day - TODAY),
            delivered=delivered.index.delivers if delivered else frozenset(),
            recipients=self.recipients if encrypted else None,
        )
        put(self.open_store(), plan, self.layout.root)
        return plan

    def key(self, day: date) -> str:
        return self.open_store().key_of(f"{day}.tar")

    @contextmanager
    def spoiled(self, day: date, at: int, content: bytes = b"damaged!") -> Iterator[None]:
        """Let an envelope be damaged for the length of the block."""
        whole = get_bytes(self.open_store(), self.key(day))
        put_bytes(self.open_store(), self.key(day), whole[:at] + content + whole[at + len(content) :])
        yield
        put_bytes(self.open_store(), self.key(day), whole)


@pytest.fixture
def sent(tmp_path: Path, open_store: StoreMaker) -> Sent:
    layout = Layout(tmp_path / "backup")
    fill(layout, DATABASES, base_bytes=4_000_000)
    secret, public = generate_identity()
    return Sent(layout, open_store, secret, parse_recipients([public]))


def files_below(root: Path, *rooms: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for room in rooms
        for path in (root / room).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_fetching_one_of_two_databases_reads_only_its_bytes(
    sent: Sent, proxy: CountingProxy, tmp_path: Path, encrypted: bool
) -> None:
    plan = sent.send(TODAY, encrypted=encrypted)
    proxy.read_bytes = 0
    root = tmp_path / "back"

    shelf = open_shelf(sent.open_store(), sent.identities if encrypted else None)
    wanted = choose_wanted(shelf, "users", root)
    announced = wanted.size_bytes
    brought = bring(shelf, wanted)

    lengths = sum(entry.length for entry in plan.index.of_database("users"))
    assert lengths <= proxy.read_bytes <= lengths * 1.05
    assert brought.fetched_bytes == announced == lengths
    assert not brought.problems
    rooms = [f"{room}/users" for room in ("base", "bundles", "wal")]
    assert files_below(root, *rooms) == files_below(sent.layout.root, *rooms)
    assert not (root / "base" / "order-db").exists()


def test_fetching_again_reads_indexes_only(sent: Sent, proxy: CountingProxy, tmp_path: Path) -> None:
    sent.send(TODAY)
    shelf = open_shelf(sent.open_store(), sent.identities)
    bring(shelf, choose_wanted(shelf, "users", tmp_path / "back"))
    proxy.read_bytes = 0
    left_by_a_kill = tmp_path / "back" / "base" / "users" / str(TODAY) / ".base.tar.1-1.tmp"
    left_by_a_kill.write_bytes(b"half")

    brought = bring(shelf, choose_wanted(shelf, "users", tmp_path / "back"))

    assert not left_by_a_kill.exists()
    assert (proxy.read_bytes, brought.fetched_bytes, brought.problems) == (0, 0, [])
    assert brought.artifacts == 6


def test_what_is_another_here_is_left_alone_and_named_and_the_rest_comes(sent: Sent, tmp_path: Path) -> None:
    sent.send(TODAY)
    root = tmp_path / "back"
    other = root / "base" / "users" / str(TODAY) / "base.tar"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody else's")
    shelf = open_shelf(sent.open_store(), sent.identities)

    brought = bring(shelf, choose_wanted(shelf, "users", root))

    assert other.read_bytes() == b"somebody else's"
    assert not (other.parent / "backup.json").exists(), "a record without what it says"
    assert [str(other) in problem for problem in brought.problems] == [True]
    assert len(read_inventory(Layout(root), "users").bundles) == 2


def test_a_closed_bundle_that_is_here_counts_for_one_that_was_sent_open(sent: Sent, tmp_path: Path) -> None:
    closed = sent.layout.bundle_record("users", hour_of(4)).read_bytes()
    record = read_inventory(sent.layout, "users").bundles[-1]
    assert record.state is BundleState.CLOSED
    half = put_bundle(sent.layout, "users", 4, first=140, count=2)
    write_record(
        sent.layout.bundle_record("users", hour_of(4)), half.model_copy(update={"state": BundleState.OPEN})
    )
    sent.send(TODAY)
    put_bundle(sent.layout, "users", 4, first=140)
    assert sent.layout.bundle_record("users", hour_of(4)).read_bytes() == closed
    shelf = open_shelf(sent.open_store(), sent.identities)

    wanted = choose_wanted(shelf, "users", sent.layout.root)
    brought = bring(shelf, wanted)

    assert wanted.kept == ("bundles/users/2026-01-29-04.json",)
    assert (brought.fetched_bytes, brought.problems) == (0, [])
    assert sent.layout.bundle_record("users", hour_of(4)).read_bytes() == closed


def test_only_some_days_are_fetched(sent: Sent, tmp_path: Path) -> None:
    sent.send(TODAY)
    shelf = open_shelf(sent.open_store(), sent.identities)

    assert choose_wanted(shelf, "users", tmp_path, since=TODAY, until=TODAY).bases == [TODAY]
    with pytest.raises(BadRequest, match="in those days"):
        choose_wanted(shelf, "users", tmp_path, since=TOMORROW)
    with pytest.raises(BadRequest, match="anything of nobody"):
        choose_wanted(shelf, "nobody", tmp_path)


def test_a_damaged_copy_is_made_up_for_by_another_envelope(sent: Sent, tmp_path: Path) -> None:
    sent.send(TODAY)
    plan = sent.send(TOMORROW)  # the first is not known to have arrived, so everything goes again
    base = next(e for e in plan.index.members if e.artifact.path == f"base/users/{TODAY}/base.tar")

    with sent.spoiled(TOMORROW, base.offset + 5000):
        shelf = open_shelf(sent.open_store(), sent.identities)
        brought = bring(shelf, choose_wanted(shelf, "users", tmp_path / "back"))

    assert brought.problems == []
    assert [sent.key(TOMORROW) in note for note in brought.notes] == [True]
    assert len(read_inventory(Layout(tmp_path / "back"), "users").bases) == 1


def test_a_damaged_bundle_gives_way_to_an_older_making_and_the_plan_is_void(
    sent: Sent, tmp_path: Path
) -> None:
    half = put_bundle(sent.layout, "users", 4, first=140, count=2)
    write_record(
        sent.layout.bundle_record("users", hour_of(4)), half.model_copy(update={"state": BundleState.OPEN})
    )
    first = sent.send(TODAY)
    put_bundle(sent.layout, "users", 4, first=140)
    plan = sent.send(TOMORROW, delivered=first)
    bundle = next(e for e in plan.index.members if e.artifact.path == "bundles/users/2026-01-29-04.tar.gz")
    with sent.spoiled(TOMORROW, bundle.offset + 700):
        stage = Stage(
            open_shelf(sent.open_store(), sent.identities),
            "users",
            tmp_path / "stage",
            Layout(tmp_path / "none"),
        )
        stage.set_up()
        before = read_inventory(stage.layout, "users").bundles[-1]
        with pytest.raises(AnotherCopy):
            stage.provide(hour_of(4))
        after = read_inventory(stage.layout, "users").bundles[-1]
        stage.provide(hour_of(4))

    assert (before.state, before.segments) == (BundleState.CLOSED, 3)
    assert (after.state, after.segments) == (BundleState.OPEN, 2)
    assert stage.envelope_of(hour_of(4)) == TODAY
    assert stage.damaged == []
    assert sent.key(TOMORROW) in stage.notes[0]


def test_records_come_with_one_request_an_envelope(sent: Sent, proxy: CountingProxy, tmp_path: Path) -> None:
    for hour in range(5, 24):
        put_bundle(sent.layout, "users", hour, first=1000 + 10 * hour)
    sent.send(TODAY)
    shelf = open_shelf(sent.open_store(), sent.identities)
    proxy.requests.clear()
    stage = Stage(shelf, "users", tmp_path / "stage", Layout(tmp_path / "none"))

    stage.set_up()

    assert len(read_inventory(stage.layout, "users").bundles) == 21
    assert proxy.requests["GET"] <= 2, "records, and history files"
    assert not list((tmp_path / "stage").rglob("*.tar*"))


def test_without_a_key_days_and_sizes_are_listed_and_with_it_everything(sent: Sent) -> None:
    plan = sent.send(TODAY)
    store = sent.open_store()

    (closed,) = look(store, None)
    (opened,) = look(store, sent.identities)

    assert (closed.day, closed.size_bytes, closed.needs_key) == (TODAY, plan.size_bytes, True)
    assert closed.contents == ()
    assert [contents.database for contents in opened.contents] == list(DATABASES)
    contents = everything_of([opened], "users")
    assert (contents.bases, contents.hours) == ((TODAY,), (hour_of(3), hour_of(4)))
    assert reach_of(shelf_of([opened]), "users").problems == ()


def test_a_wrong_key_is_said_before_anything_is_fetched(sent: Sent, proxy: CountingProxy) -> None:
    sent.send(TODAY)
    proxy.read_bytes = 0

    for keys in (None, parse_identities(generate_identity()[0])):
        with pytest.raises(WrongKey, match=f"{TODAY}.tar") as error:
            open_shelf(sent.open_store(), keys)
        assert "PITR_AGE_KEY_FILE" in error.value.remedy
        assert sent.secret not in str(error.value)

    assert proxy.read_bytes < 2 * (64 * 1024 + 4096)


def test_envelopes_that_are_none_are_named_and_the_others_serve(sent: Sent) -> None:
    plan = sent.send(TODAY)
    whole = get_bytes(sent.open_store(), sent.key(TODAY))
    other_key, _ = generate_identity()
    put_bytes(sent.open_store(), sent.key(TOMORROW), b"no envelope at all" * 50)
    put_bytes(sent.open_store(), sent.key(TODAY + timedelta(days=2)), whole)
    put_bytes(sent.open_store(), sent.key(TODAY + timedelta(days=3)), b"")
    put_bytes(sent.open_store(), sent.open_store().key_of("notes.txt"), b"not looked at")
    shelf = open_shelf(sent.open_store(), parse_identities(f"{other_key}\n{sent.secret}\n"))

    assert [envelope.day for envelope in shelf.envelopes] == [TODAY]
    said = sorted(str(passed) for passed in shelf.passed_over)
    assert len(said) == 3
    assert f"is the envelope of {TODAY}" in said[1]
    assert set(shelf.copies("users")) == {e.artifact.unit for e in plan.index.of_database("users")}


def test_of_an_envelope_that_is_cut_off_what_is_whole_serves(sent: Sent, tmp_path: Path) -> None:
    plan = sent.send(TODAY)
    cut = next(e for e in plan.index.members if e.artifact.database == "users").offset
    whole = get_bytes(sent.open_store(), sent.key(TODAY))
    put_bytes(sent.open_store(), sent.key(TODAY), whole[: cut + 600])
    shelf = open_shelf(sent.open_store(), sent.identities)

    assert "cut off" in str(shelf.passed_over[0])
    brought = bring(shelf, choose_wanted(shelf, "order-db", tmp_path / "back"))
    assert brought.problems == []
    with pytest.raises(BadRequest, match="cut off"):
        choose_wanted(shelf, "users", tmp_path / "back")


def test_an_empty_place_a_wrong_bucket_and_wrong_credentials_say_so(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="there is no envelope at"):
        open_shelf(sent.open_store(), None)
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        open_shelf(sent.open_store(bucket="nobodys-bucket"), None)
    put_bytes(sent.open_store(), sent.key(TODAY), b"x" * 200)
    with pytest.raises(ArtifactDamaged, match="does not begin as an envelope does"):
        open_shelf(sent.open_store(), None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreUnavailable, match="SignatureDoesNotMatch") as error:
        open_shelf(sent.open_store(), None)
    assert "credentials" in error.value.remedy


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("ExpiredToken", "get new credentials"),
        ("RequestTimeTooSkewed", "clock of this machine"),
        ("AccessDenied", "s3:ListBucket"),
        ("SlowDown", "Ask again in a while"),
    ],
)
def test_what_the_store_refuses_a_reader_says_what_to_do(
    open_store: StoreMaker, word: str, remedy: str
) -> None:
    body = f"<Error><Code>{word}</Code><Message>told so</Message></Error>".encode()

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if word == "SlowDown" else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with pytest.raises(StoreUnavailable, match=word) as error:
                open_shelf(open_store(endpoint_url=f"http://127.0.0.1:{server.server_port}"), None)
        finally:
            server.shutdown()
            thread.join()
    assert remedy in error.value.remedy
    assert "next call" not in error.value.remedy


def test_a_connection_that_breaks_is_taken_up_again(sent: Sent, proxy: CountingProxy, tmp_path: Path) -> None:
    sent.send(TODAY)
    shelf = open_shelf(sent.open_store(), sent.identities)
    proxy.cut_reads = 2

    brought = bring(shelf, choose_wanted(shelf, "users", tmp_path / "back"))

    assert brought.problems == []
    rooms = ("base/users", "bundles/users")
    assert files_below(tmp_path / "back", *rooms) == files_below(sent.layout.root, *rooms)


def test_a_line_that_keeps_breaking_is_no_reason_to_give_up_while_it_gets_further(
    sent: Sent, proxy: CountingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent.send(TODAY)
    shelf = open_shelf(sent.open_store(), sent.identities)
    proxy.cut_reads = 6
    with monkeypatch.context() as patched:
        patched.setattr(ranges, "WORTHWHILE_BYTES", 10_000)
        brought = bring(shelf, choose_wanted(shelf, "users", tmp_path / "back"))
    assert (brought.problems, proxy.cut_reads) == ([], 0)

    proxy.cut_reads = 6
    with pytest.raises(StoreUnavailable, match="broke 4 times"):
        bring(shelf, choose_wanted(shelf, "order-db", tmp_path / "back"))
    bring(shelf, choose_wanted(shelf, "order-db", tmp_path / "back"))
    assert files_below(tmp_path / "back", "base") == files_below(sent.layout.root, "base")


def test_a_key_file_is_new_its_owners_alone_and_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "offsite.key"

    public = make_key_file(file)

    assert file.stat().st_mode & 0o777 == 0o600
    assert public in file.read_text()
    assert parse_recipients([public])
    assert read_key_files([file], {}) is not None
    assert read_key_files([], {"PITR_AGE_KEY_FILE": str(file)}) is not None
    assert read_key_files([], {}) is None
    before = file.read_bytes()
    with pytest.raises(BadRequest, match="left alone"):
        make_key_file(file)
    assert file.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((BadRequest, OSError)):
        make_key_file(link)
    for content in (b"no key", b"\xff\xfe", b""):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(PitrError, match="bad"):
            read_key_files([tmp_path / "bad"], {})
    with pytest.raises(PitrError, match="cannot be read"):
        read_key_files([tmp_path / "absent"], {})


def test_what_lies_in_another_place_than_its_kind_is_never_used(sent: Sent) -> None:
    from pitr_pipelines.offsite.shelf import is_in_its_place

    plan = sent.send(TODAY)
    for entry in plan.index.members:
        artifact = entry.artifact
        assert is_in_its_place(artifact) == (artifact.database is not None)
        if artifact.database is None:
            continue
        for path in ("bin/wal-archive.sh", f"base/other/{TODAY}/base.tar", "offsite/2026-01-29.json"):
            assert not is_in_its_place(artifact.model_copy(update={"path": path, "unit": path}))
            assert not is_in_its_place(artifact.model_copy(update={"path": path}))


def test_random_neighbours_are_read_as_they_are(sent: Sent, proxy: CountingProxy) -> None:
    plan = sent.send(TODAY, encrypted=False)
    whole = get_bytes(sent.open_store(), sent.key(TODAY))
    shelf = open_shelf(sent.open_store(), None)
    pick = random.Random(1)
    for _ in range(10):
        members = pick.sample(plan.index.members, pick.randint(1, len(plan.index.members)))
        source = shelf.envelopes[0].reader(members)[1]
        for entry in sorted(members, key=lambda entry: entry.offset):
            taken = pick.choice([entry.length, 100])
            read = b"".join(source.get_range(entry.offset, taken))
            assert read == whole[entry.offset : entry.offset + taken]
        source.close()
