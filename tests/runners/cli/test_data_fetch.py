"""`lra-data fetch`, `remove` and `prepare --from` as a user meets them."""

import hashlib

import pytest

from lra.data import download, places
from lra.data.download import Remote
from tests.lra.data.archive_cases import review_members, tar_bytes
from tests.lra.data.loopback import Server

CONTENT = tar_bytes(review_members())
SMALL = ["--set", "train_reviews=10", "--set", "test_reviews=4"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = Remote(url="https://example.org/aclImdb_v1.tar.gz", size_limit=1 << 20, sha256=digest)
    monkeypatch.setitem(places.REMOTES, "text", (known,))
    running = Server(CONTENT)
    yield running
    running.close()


def test_fetch_downloads_and_prepares_and_later_dataset_variants_need_no_network(lra_data, home, server):
    result = lra_data("fetch", "text", "--mirror", server.url, *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "of the known SHA-256" in result.stdout
    assert "train: 9 examples" in result.stdout
    assert (home / "sources" / "aclImdb_v1.tar.gz").read_bytes() == CONTENT
    again = lra_data("prepare", "text", "--set", "max_length=9", *SMALL)
    assert again.exit_code == 0
    assert "first 9 bytes" in again.stdout
    assert len(server.ranges) == 1


def test_a_file_that_is_exchanged_behind_its_check_is_not_called_known(lra_data, home, server, monkeypatch):
    other = tar_bytes(review_members()[::-1])
    genuine = download.fetch

    def exchanged(*arguments, **keywords):
        file = genuine(*arguments, **keywords)
        file.write_bytes(other)
        return file

    monkeypatch.setattr(download, "fetch", exchanged)
    done = lra_data("fetch", "text", "--mirror", server.url, *SMALL)
    assert done.exit_code == 3
    assert "has changed since it was fetched" in done.stderr
    assert list(home.glob("text-*")) == []


def test_ctrl_c_is_one_line_and_exit_130(lra_data, server, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch", interrupted)
    done = lra_data("fetch", "text", "--mirror", server.url, *SMALL)
    assert done.exit_code == 130
    assert done.stderr.split("\n") == ["", "Stopped; the same command begins again.", ""]


def test_a_wrong_file_is_one_line_and_exit_3(lra_data, home, server):
    server.behaviours = ["wrong"]
    result = lra_data("fetch", "text", "--mirror", server.url, *SMALL)
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert list((home / "sources").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["listops"], "listops is generated"),
        (["retrieval", "--set", "source=substitute"], "no known address"),
        (["text", "--mirror", "http://example.org"], "only https"),
        (["txt"], "did you mean 'text'"),
    ],
)
def test_what_cannot_be_fetched_is_a_usage_error(lra_data, arguments, message):
    result = lra_data("fetch", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_missing_data_is_three_lines_and_exit_3(lra_data):
    result = lra_data("prepare", "text")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 3
    assert "lra-data fetch text" in result.stderr


def test_prepare_from_remembers_the_file(lra_data, home, tmp_path):
    file = tmp_path / "by-hand"
    file.write_bytes(CONTENT)
    assert lra_data("prepare", "text", "--from", file, *SMALL).exit_code == 0
    assert (home / "sources" / "text").resolve() == file
    assert lra_data("prepare", "text", "--set", "seed=5", *SMALL).exit_code == 0


def test_a_source_that_was_not_read_is_not_remembered(lra_data, home, tmp_path):
    file, other = tmp_path / "by-hand", tmp_path / "by-hands"
    file.write_bytes(CONTENT)
    assert lra_data("prepare", "text", "--from", file, *SMALL).exit_code == 0
    missing = lra_data("prepare", "text", "--from", other, *SMALL)
    assert (missing.exit_code, missing.stdout) == (3, "")
    assert missing.stderr == f"Error: {other}: no such file or folder; did you mean {str(file)!r}?\n"
    other.write_bytes(b"not an archive")
    unread = lra_data("prepare", "text", "--from", other, *SMALL)
    assert unread.exit_code == 0
    (folder,) = home.glob("text-*")
    assert unread.stdout.splitlines()[0] == f"Already prepared: {folder}; --from was not read"
    assert lra_data("prepare", "text", "--from", other, "--set", "seed=5", *SMALL).exit_code == 3
    assert (home / "sources" / "text").resolve() == file
    assert lra_data("prepare", "text", "--set", "seed=5", *SMALL).exit_code == 0


def test_a_fetched_file_is_remembered_though_the_data_was_prepared(lra_data, home, tmp_path, server):
    file = tmp_path / "by-hand"
    file.write_bytes(CONTENT)
    assert lra_data("prepare", "text", "--from", file, *SMALL).exit_code == 0
    file.unlink()
    assert lra_data("prepare", "text", "--set", "seed=5", *SMALL).exit_code == 3
    fetched = lra_data("fetch", "text", "--mirror", server.url, *SMALL)
    assert fetched.exit_code == 0
    assert "Already prepared: " in fetched.stdout
    assert "; what was fetched was not read\n" in fetched.stdout
    assert lra_data("prepare", "text", "--set", "seed=5", *SMALL).exit_code == 0


def test_without_a_network_fetch_says_how_to_go_on(lra_data, home, server, monkeypatch):
    monkeypatch.setattr("lra.data.download.TRIES", 1)
    server.behaviours = ["break"]
    broken = lra_data("fetch", "text", "--mirror", server.url, *SMALL)
    part = home / "sources" / "aclImdb_v1.tar.gz.part"
    assert broken.stderr.endswith("; the same command goes on where this one ended\n")
    part.unlink()
    server.behaviours = [503]
    for place in ([], ["--data-dir", home / "other"]):
        refused = lra_data("fetch", "text", "--mirror", server.url, *SMALL, *place)
        command = " ".join(["lra-data prepare text --from FILE", *map(str, place)])
        assert refused.exit_code == 3
        assert refused.stderr.endswith(f"; lra-data where text lists other places; {command} reads a copy\n")
        assert refused.stderr.count("\n") == 1


def test_remove_takes_dataset_variants_by_task_or_name_and_asks_first(lra_data, home, tmp_path):
    file = tmp_path / "by-hand"
    file.write_bytes(CONTENT)
    for seed in range(3):
        assert lra_data("prepare", "text", "--from", file, "--set", f"seed={seed}", *SMALL).exit_code == 0
    first, second, third = sorted(home.glob("text-*"))
    assert lra_data("remove", first.name, input="n\n").exit_code == 1
    assert first.is_dir()
    assert lra_data("remove", first.name, input="y\n").exit_code == 0
    assert sorted(home.glob("text-*")) == [second, third]
    assert lra_data("remove", "text", "--yes").stdout.splitlines()[-1] == "Removed 2"
    assert [entry.name for entry in home.iterdir()] == ["sources"]
    missing = lra_data("remove", "text", "--yes")
    assert missing.exit_code == 3
    assert "nothing named 'text'" in missing.stderr
    assert file.read_bytes() == CONTENT


def test_remove_never_leaves_the_folder_of_data(lra_data, home, tmp_path):
    outside = tmp_path / "text-outside"
    outside.mkdir()
    (home / "copy").mkdir(parents=True)
    (home / "copy" / "manifest.json").write_text("{}")
    for name in ("../text-outside", str(outside), ".", "sources", ""):
        assert lra_data("remove", name, "--yes").exit_code == 3
    assert outside.is_dir()
    assert (home / "copy").is_dir()


def test_only_images_have_a_contact_sheet(lra_data, tmp_path):
    result = lra_data("show", "text", "--out", tmp_path / "sheet.png")
    assert (result.exit_code, result.stderr) == (2, "Error: --out draws images, and text has none\n")
