"""The table of places: complete, printable within 100 columns, and what `lra-data fetch` uses."""

import json
import re

import pytest
from click.testing import CliRunner

from lra.data.places import PLACES, REMOTES, places_of
from lra.tasks import TASKS
from runners.cli.data import main


def where(*arguments):
    done = CliRunner().invoke(main, ["where", *arguments])
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def test_every_task_has_a_place_that_is_read():
    assert {task for place in PLACES for task in place.tasks} == set(TASKS)
    for task in TASKS:
        assert any(place.read_with.startswith("lra-data ") for place in places_of(task))


@pytest.mark.parametrize("task", [None, *TASKS])
def test_the_list_has_all_facts_in_100_columns(task):
    text = where() if task is None else where(task)
    assert max(map(len, text.splitlines())) <= 100
    for place in PLACES:
        assert (place.name in text.split("\n")) == (task is None or task in place.tasks)
    for fact in ("address", "form", "size", "licence", "reported", "command"):
        assert len(re.findall(rf"^  {fact} ", text, re.MULTILINE)) == len(places_of(task))


def test_what_fetch_downloads_is_in_the_list_with_the_digest_that_it_insists_on():
    text = " ".join(where().split())
    for key, remotes in REMOTES.items():
        for remote in remotes:
            assert remote.sha256 is None or f"{remote.sha256} of {remote.file_name}" in text
        assert f"lra-data fetch {key}" in text
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for place in PLACES for _, digest in place.sha256)


def test_json_has_the_same_places():
    (aan, *_) = [place for place in json.loads(where("retrieval", "--json")) if place.get("fetched_as")]
    assert [remote["url"].rpartition("/")[2] for remote in aan["remotes"]] == [
        "new_aan_pairs.eval.tsv",
        "new_aan_pairs.test.tsv",
        "new_aan_pairs.train.tsv",
    ]
    assert len(json.loads(where("--json"))) == len(PLACES)
