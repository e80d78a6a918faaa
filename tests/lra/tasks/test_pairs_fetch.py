"""`lra-data fetch retrieval` from a server on this machine that behaves like the real places, on their bad days too."""

import gzip
import hashlib
import json
import mmap
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lra.data import places, raw_files
from lra.data.dataset import open_prepared
from lra.data.download import Remote, Transfer
from lra.data.split import SPLITS
from lra.tasks import pairs_fetch
from lra.tasks import retrieval as module
from lra.tasks.pairs_fetch import read_state
from runners.cli.data import main
from tests.lra.data.loopback import Server

ROOT = Path(__file__).resolve().parents[3]
COUNTS = {"train": 60, "validation": 7, "test": 5}
NAMES = {"validation": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv", "train": "new_aan_pairs.train.tsv"}
QUOTED = b'a "lone quote and \xff\x00\xe2\x80\xa8'


def row(split, number):
    first = b"%s %d " % (split.encode(), number) + b"x" * 9_000
    second = QUOTED * 300
    if number % 3:
        second = second[:3_999] + b"\r" + second[4_000:]  # at the end of what is kept
    return b"\t".join([b"%d.0" % (number % 2), b"P00-1", b"P00-2", first, second])


CONTENT = {
    name: b"".join(row(split, number) + b"\n" for number in range(COUNTS[split])) for split, name in NAMES.items()
}
TRAIN = NAMES["train"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running = Server(CONTENT)
    running.pauses = []
    monkeypatch.setitem(Transfer.__init__.__kwdefaults__, "pause", running.pauses.append)
    monkeypatch.setattr(module, "OFFICIAL_COUNTS", COUNTS)
    monkeypatch.setattr(pairs_fetch, "PIECE", 100_000)
    remotes = [
        Remote(
            url=f"{running.url}/{name}",
            least_size=len(content) - 9,
            size_limit=len(content) + 9,
            sha256=None,
            hosts=("localhost",),
        )
        for name, content in CONTENT.items()
    ]
    monkeypatch.setitem(places.REMOTES, "retrieval", tuple(remotes))
    yield running
    running.close()


@pytest.fixture
def from_files(tmp_path, server):
    """The data as it is prepared from the files themselves, under their top folder."""
    folder = tmp_path / "lra_release" / "lra_release" / "tsv_data"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    home = tmp_path / "by-hand"
    done = CliRunner().invoke(main, ["prepare", "retrieval", "--from", str(tmp_path), "--data-dir", str(home)])
    assert done.exit_code == 0, done.stderr
    (prepared,) = home.glob("retrieval-*")
    return open_prepared(prepared, verify=True)


def prepared(home):
    (folder,) = home.glob("retrieval-*")
    return open_prepared(folder, verify=True)


def refused(lra_data):
    done = lra_data("fetch", "retrieval", "--quiet")
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").rstrip("\n")


def digests(*names):
    return {name: hashlib.sha256(CONTENT[name]).hexdigest() for name in names}


def test_what_is_fetched_is_what_the_files_give_and_a_fraction_is_kept(lra_data, home, server, from_files):
    done = lra_data("fetch", "retrieval")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "(72 pairs, the first 4,000 bytes of each document)" in done.stdout
    data = prepared(home)
    assert [len(data.split(name)) for name in SPLITS] == list(COUNTS.values())
    assert data.split("train").tokens_of(3, 1).tobytes() == (QUOTED * 300)[:4_000]
    assert data.digest == from_files.digest
    assert data.manifest.files == from_files.manifest.files
    assert data.manifest.sources == from_files.manifest.sources == digests(*CONTENT)
    for digest in [data.digest, *data.manifest.sources.values()]:
        assert f"  {digest}  " in done.stdout
    assert lra_data("verify").stdout.startswith(f"{data.path.name}: sound, SHA-256 of the content {data.digest}\n")
    sizes = [file.stat().st_size for file in home.rglob("*") if file.is_file()]
    assert sum(sizes) < 1.3 * sum(file.stat().st_size for file in data.path.iterdir())
    assert list(home.rglob("*.tmp")) == []


def test_later_dataset_variants_need_no_network_unless_they_are_longer(lra_data, home, server):
    assert lra_data("fetch", "retrieval").exit_code == 0
    asked = len(server.ranges)
    assert lra_data("prepare", "retrieval", "--set", "max_length=100").exit_code == 0
    assert lra_data("fetch", "retrieval").exit_code == 0
    assert len(server.ranges) == asked
    longer = lra_data("prepare", "retrieval", "--set", "max_length=4001")
    assert longer.exit_code == 3
    kept = home / "sources" / "new_aan_pairs-first-4000"
    problem = f"Error: {kept}: the first 4,000 bytes of each document were kept; "
    assert longer.stderr == f"{problem}lra-data fetch retrieval --set max_length=4001 fetches more\n"
    (kept / "fetched.json").rename(home / "note")
    (kept / "fetched.json").symlink_to(home / "unmounted")  # as if nothing said that documents are cut
    unknown = lra_data("prepare", "retrieval", "--set", "max_length=4001", "--from", kept)
    assert unknown.stderr == f"Error: {kept / 'fetched.json'}: a link to what is not there\n"
    assert "Nothing is left behind" in lra_data("remove", "leftovers", "--yes").stdout
    (home / "note").replace(kept / "fetched.json")
    assert lra_data("fetch", "retrieval", "--set", "max_length=4001").exit_code == 0
    assert len(server.ranges) == asked + 3


@pytest.mark.parametrize("then", ["good", "no range", "earlier"])
def test_a_fetch_that_broke_off_goes_on_where_it_was(lra_data, home, server, from_files, then):
    server.behaviours = ["good", "good", "break"]
    assert refused(lra_data).endswith("; the same command goes on where this one ended")
    folder = home / "sources" / "new_aan_pairs-first-4000"
    state = json.loads((folder / "fetched.json").read_text())["files"][TRAIN]
    assert 0 < state["position"] < state["size"] == len(CONTENT[TRAIN])
    assert len(gzip.decompress((folder / f"{TRAIN}.gz").read_bytes()).split(b"\r\n")[:-1]) == state["rows"] > 0
    incomplete = lra_data("prepare", "retrieval", "--from", folder)
    assert incomplete.stderr == f"Error: {folder}: not complete; lra-data fetch retrieval goes on with it\n"
    with (folder / f"{TRAIN}.gz").open("ab") as file:
        file.write(b"a piece that a kill left without a note")
    server.behaviours, asked = [then], len(server.ranges)
    done = lra_data("fetch", "retrieval")
    assert done.exit_code == 0
    assert f"; no SHA-256 of {TRAIN}, which came in parts)" in done.stdout
    assert server.ranges[asked:] == [f"bytes={state['position']}-"]
    assert prepared(home).digest == from_files.digest
    # no command read all of the training file, so no digest of it is known
    assert prepared(home).manifest.sources == digests(NAMES["validation"], NAMES["test"])


def test_a_folder_that_lacks_a_file_is_not_complete(lra_data, home, server):
    """As a kill leaves it before the first piece of the last file is noted."""
    server.behaviours = ["good", "good", 404]
    refused(lra_data)
    folder = home / "sources" / "new_aan_pairs-first-4000"
    state = read_state(folder)
    assert [state.files[name].complete for name in NAMES.values()].count(True) == 2
    assert not state.complete
    kept = gzip.compress(b"".join(row("train", number) + b"\n" for number in range(20)))
    (folder / f"{TRAIN}.gz").write_bytes(kept)
    for source in ("official", "substitute"):
        result = lra_data("prepare", "retrieval", "--set", f"source={source}", "--from", folder)
        assert result.stderr == f"Error: {folder}: not complete; lra-data fetch retrieval goes on with it\n"
    server.behaviours = ["good"]
    assert lra_data("fetch", "retrieval").exit_code == 0
    assert read_state(folder).complete


def test_breaks_within_one_command_lose_nothing(lra_data, home, server, from_files):
    server.behaviours = ["break", "good", "good", "break", "break", "good"]
    assert lra_data("fetch", "retrieval", "--quiet").exit_code == 0
    assert server.pauses == [4.0, 4.0, 16.0]
    assert prepared(home).manifest == from_files.manifest.model_copy(
        update={"generated_by": prepared(home).manifest.generated_by}
    )


def test_a_redirection_of_the_hub_is_followed_and_its_digest_believed_only_if_it_is_true(lra_data, home, server):
    other = server.url.replace("127.0.0.1", "localhost")
    first = NAMES["validation"]
    server.linked = {"X-Linked-Size": str(len(CONTENT[first])), "X-Linked-ETag": '"' + "0" * 64 + '"'}
    server.behaviours = [f"redirect {other}/{first}", "good"]
    message = refused(lra_data)
    assert message.startswith(f"{server.url}/{first}: the SHA-256 is {digests(first)[first]}, but the server stated")
    assert message.endswith("; nothing of it was kept")
    server.linked["X-Linked-ETag"] = f'"{digests(first)[first]}"'
    server.behaviours, asked = [f"redirect {other}/{first}", "good"], len(server.ranges)
    assert lra_data("fetch", "retrieval").exit_code == 0
    assert server.ranges[asked:] == [None] * 4


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            403,
            "eval.tsv: the server answers 403 Forbidden; lra-data where retrieval lists other places; ",
        ),
        ("redirect https://cdn.example.org/x", "redirected to https://cdn.example.org/x, which is no server of this"),
        (
            b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
            "/new_aan_pairs.eval.tsv: 6 bytes of text/html, less than the ",
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99999999\r\n\r\n", "99,999,999 bytes, more than the "),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "the server does not say how long the file is, and no digest is known"),
        ("break", "; the same command goes on where this one ended"),
    ],
)
def test_each_bad_day_of_a_server_is_one_line_and_leaves_no_data(lra_data, home, server, behaviour, message):
    server.behaviours = [behaviour]
    assert message in refused(lra_data)
    assert list(home.glob("retrieval-*")) == []


def test_a_file_that_changed_its_size_is_not_gone_on_with(lra_data, server, home):
    server.behaviours = ["good", "good", "break"]
    assert "the same command" in refused(lra_data)
    server.behaviours, server.content = ["good"], CONTENT | {TRAIN: CONTENT[TRAIN] + b"\n"}
    before, now = len(CONTENT[TRAIN]), len(CONTENT[TRAIN]) + 1
    assert refused(lra_data) == f"{server.url}/{TRAIN}: {now:,} bytes, but an earlier answer had {before:,}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"test 3 ", b"test\t3 "), ":4: expected 5 fields, got 6"),
        ((b"1.0\tP00-1\tP00-2\ttest 1 ", b"9.0\tP00-1\tP00-2\ttest 1 "), ":2: the label must be 0 or 1, got '9.0'"),
        ((b"0.0\tP00-1\tP00-2\ttest 4", b"\n0.0\tP00-1\tP00-2\ttest4"), ":5: expected 5 fields, got 1"),
    ],
)
def test_broken_rows_are_named_by_their_line(lra_data, server, change, message):
    name = NAMES["test"]
    server.content = CONTENT | {name: CONTENT[name].replace(*change)}
    assert server.content[name] != CONTENT[name]
    assert refused(lra_data) == f"{name}{message}"


def test_a_file_of_another_number_of_rows_is_refused_when_it_is_prepared(lra_data, server, home, monkeypatch):
    monkeypatch.setattr(module, "OFFICIAL_COUNTS", COUNTS | {"train": 61})
    assert "60 / 7 / 5 pairs, but the benchmark has 61 / 7 / 5" in refused(lra_data)
    assert list(home.glob("retrieval-*")) == []


def test_kept_rows_that_were_damaged_are_one_line(lra_data, server, home):
    assert lra_data("fetch", "retrieval").exit_code == 0
    folder = home / "sources" / "new_aan_pairs-first-4000"
    file = folder / f"{TRAIN}.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    damaged = lra_data("prepare", "retrieval", "--set", "max_length=9")
    assert damaged.exit_code == 3
    assert damaged.stderr.startswith(f"Error: {file}")
    assert damaged.stderr.count("\n") == 1
    (folder / "fetched.json").write_text("{")
    damaged = lra_data("prepare", "retrieval", "--set", "max_length=9")
    assert damaged.stderr == f"Error: {folder / 'fetched.json'}: damaged; remove the folder and fetch again\n"


CHILD = """
import sys
from lra.data import places, raw_files
from lra.data.download import Remote
from lra.tasks import pairs_fetch, retrieval
from runners.cli.data import main

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024

url, home, *counts = sys.argv[1:]
pairs_fetch.PIECE = 8 << 20
retrieval.OFFICIAL_COUNTS = dict(zip(("train", "validation", "test"), map(int, counts)))
names = [f"new_aan_pairs.{name}.tsv" for name in ("eval", "test", "train")]
remotes = [Remote(url=f"{url}/{name}", size_limit=1 << 40, sha256=None) for name in names]
places.REMOTES["retrieval"] = tuple(remotes)
before = peak()
main(["fetch", "retrieval", "--data-dir", home], standalone_mode=False)
print("megabytes", peak() - before)
"""


@pytest.mark.parametrize(("rows", "length"), [(2_200, 29_000), pytest.param(16_000, 4_000, marks=pytest.mark.nightly)])
def test_neither_the_files_nor_what_is_kept_of_them_is_ever_in_memory(tmp_path, server, rows, length):
    """Rows of 58 kB as the real ones, and rows of which all is kept: 128 MB of either take 29 and 51 MB of memory."""
    counts = {"train": rows, "validation": 20, "test": 20}
    text = (bytes(range(32, 127)) * 306)[:length]
    line = b"\t".join([b"1.0", b"P00-1", b"P00-2", text, text]) + b"\n"
    server.content = {NAMES[split]: line * count for split, count in counts.items()}
    assert len(server.content[TRAIN]) > 125e6
    home = tmp_path / "home"
    words = [sys.executable, "-c", CHILD, server.url, str(home), *map(str, counts.values())]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 100, done.stdout


def test_kept_rows_that_were_changed_are_not_read_as_those_of_the_server(lra_data, home, server):
    assert lra_data("fetch", "retrieval").exit_code == 0
    file = home / "sources" / "new_aan_pairs-first-4000" / f"{TRAIN}.gz"
    rows = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    turned = [bytes([row[0] ^ 1]) + row[1:] for row in rows]  # "0" for "1", and "1" for "0"
    file.write_bytes(gzip.compress(b"".join(turned)))
    changed = lra_data("prepare", "retrieval", "--set", "max_length=9")
    assert changed.exit_code == 3
    assert changed.stderr == f"Error: {file}: has changed since it was fetched; remove {file.parent} and fetch again\n"


def test_kept_rows_that_change_between_their_check_and_their_reading_are_refused(lra_data, home, server, monkeypatch):
    assert lra_data("fetch", "retrieval").exit_code == 0
    file, read = home / "sources" / "new_aan_pairs-first-4000" / f"{NAMES['test']}.gz", module.PairReader.read

    def changed(reader, *arguments):
        rows = gzip.decompress(file.read_bytes())
        file.write_bytes(gzip.compress(rows.replace(b"1.0\t", b"0.0\t")))
        return read(reader, *arguments)

    monkeypatch.setattr(module.PairReader, "read", changed)
    result = lra_data("prepare", "retrieval", "--set", "max_length=30")
    assert result.stderr == f"Error: {file}: changed while it was read; prepare the data again\n"
    assert len(list(home.glob("retrieval-*"))) == 1


def test_kept_rows_that_are_written_through_a_mapping_are_refused(lra_data, home, server, monkeypatch):
    """Where a page of it was written to already, the time of the file stays."""
    assert lra_data("fetch", "retrieval").exit_code == 0
    file, read = home / "sources" / "new_aan_pairs-first-4000" / f"{NAMES['test']}.gz", module.PairReader.read
    other = gzip.compress(gzip.decompress(file.read_bytes()).replace(b"1.0\t", b"0.0\t"), 9, mtime=0)
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
        mapped[:] = mapped[:]

        def changed(reader, *arguments):
            mapped[:] = other.ljust(len(mapped), b"\0")  # zeros behind are no fault of a gzip file
            return read(reader, *arguments)

        monkeypatch.setattr(module.PairReader, "read", changed)
        assert lra_data("prepare", "retrieval", "--set", "max_length=30").exit_code == 3
    assert len(list(home.glob("retrieval-*"))) == 1


@pytest.mark.parametrize("while_it_is", ["checked", "read"])
def test_a_folder_vouches_for_no_rows_of_another(lra_data, home, server, monkeypatch, tmp_path, while_it_is):
    """One with other rows is read, or a sound one is checked, while it has the place of the one that was named."""
    assert lra_data("fetch", "retrieval").exit_code == 0
    named, other = tmp_path / "named", tmp_path / "other"
    shutil.move(home / "sources" / "new_aan_pairs-first-4000", named)
    shutil.copytree(named, other)
    file = (named if while_it_is == "checked" else other) / f"{NAMES['test']}.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"1.0\t", b"0.0\t")))
    place, name = (raw_files, "_digest") if while_it_is == "checked" else (module.PairReader, "read")
    genuine = getattr(place, name)

    def exchange():
        named.rename(tmp_path / "aside")
        other.rename(named)
        (tmp_path / "aside").rename(other)

    def exchanged(*arguments):
        exchange()
        try:
            return genuine(*arguments)
        finally:
            exchange()

    monkeypatch.setattr(place, name, exchanged)
    done = lra_data("prepare", "retrieval", "--set", "max_length=30", "--from", str(named))
    assert done.exit_code == 3
    assert "changed while it was read" in done.stderr


def test_fetched_rows_say_what_they_are_wherever_their_folder_is_copied(lra_data, home, server, tmp_path):
    """Also if the user names the folder above, in which it has the name of the release."""
    assert lra_data("fetch", "retrieval").exit_code == 0
    shutil.copytree(home / "sources" / "new_aan_pairs-first-4000", tmp_path / "cluster" / "aan")
    for folder in ("cluster/aan", "cluster"):
        words = ("--set", "source=substitute", "--set", "max_length=8000", "--from", str(tmp_path / folder))
        longer = lra_data("prepare", "retrieval", *words)
        assert longer.exit_code == 3
        assert "the first 4,000 bytes of each document were kept" in longer.stderr
    (tmp_path / "cluster" / "aan" / "fetched.json").rename(tmp_path / "cluster" / "fetched.json")
    assert lra_data("prepare", "retrieval", *words).exit_code == 3  # the note stays in the folder that is named


def test_a_fetch_goes_on_only_with_what_it_kept(lra_data, home, server):
    server.behaviours = ["good", "good", "break"]
    refused(lra_data)
    file = home / "sources" / "new_aan_pairs-first-4000" / f"{TRAIN}.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    server.behaviours = ["good"]
    assert "has changed since it was fetched" in refused(lra_data)


@pytest.mark.parametrize("field", ["first_bytes", "sha256", "kept_sha256", "checksum"])
def test_a_note_of_a_fetch_that_was_changed_is_not_believed(lra_data, home, server, field):
    assert lra_data("fetch", "retrieval").exit_code == 0
    note = home / "sources" / "new_aan_pairs-first-4000" / "fetched.json"
    content = json.loads(note.read_text())
    holder = content if field in content else content["files"][TRAIN]
    holder[field] = 6000 if field == "first_bytes" else "0" * 64
    note.write_text(json.dumps(content))
    done = lra_data("prepare", "retrieval", "--set", "max_length=5000")
    assert done.exit_code == 3
    assert done.stderr == f"Error: {note}: damaged; remove the folder and fetch again\n"


def test_a_note_without_a_checksum_is_not_believed(lra_data, home, server):
    assert lra_data("fetch", "retrieval").exit_code == 0
    note = home / "sources" / "new_aan_pairs-first-4000" / "fetched.json"
    content = json.loads(note.read_text())
    del content["checksum"]
    note.write_text(json.dumps(content))
    assert lra_data("prepare", "retrieval", "--set", "max_length=9").stderr == (
        f"Error: {note}: damaged; remove the folder and fetch again\n"
    )
