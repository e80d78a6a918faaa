"""A corpus of Pathfinder images: the same for any number of processes, and taken up again after a kill."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lra.data.work_folder import sole_owner
from lra.errors import DataError
from lra.tasks.pathfinder import corpus
from lra.tasks.pathfinder.corpus import IMAGES, LOG, generate_images
from lra.tasks.pathfinder.generator import CHUNK, generate_chunk, make_recipe

RECIPE = make_recipe(32, "easy")
TOTAL = 3 * CHUNK + 10


def generate(folder, workers=1, total=TOTAL):
    examples = list(generate_images(RECIPE, total, 0, folder, workers=workers, progress=False))
    return b"".join(pixels for _, pixels in examples), bytes(label for label, _ in examples)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    expected = generate(folder)
    return expected, (folder / IMAGES).read_bytes(), (folder / LOG).read_bytes()


@pytest.fixture
def calls(monkeypatch):
    """Numbers of the chunks that are computed."""
    numbers = []

    def counted(recipe, seed, number):
        numbers.append(number)
        return generate_chunk(recipe, seed, number)

    monkeypatch.setattr(corpus, "generate_chunk", counted)
    return numbers


@pytest.mark.nightly  # as of ListOps, by the same pool of processes
def test_images_do_not_depend_on_the_number_of_workers(tmp_path, unbroken):
    assert generate(tmp_path, workers=2) == unbroken[0]


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one(tmp_path, unbroken):
    images, labels = generate(tmp_path, total=100)
    assert unbroken[0][0].startswith(images)
    assert unbroken[0][1].startswith(labels)
    assert len(labels) == 100


def test_what_is_finished_is_kept(tmp_path, unbroken, calls):
    expected, images, log = unbroken
    (tmp_path / IMAGES).write_bytes(images)
    (tmp_path / LOG).write_bytes(log)
    assert generate(tmp_path) == expected
    assert calls == []


CHUNK_BYTES, ENTRY = CHUNK * 32 * 32, len(b"d" * 32) + CHUNK


@pytest.mark.parametrize(
    ("images_kept", "log_kept", "flipped", "sound"),
    [
        (2 * CHUNK_BYTES, 2 * ENTRY, None, 2),
        (2 * CHUNK_BYTES + 77, 2 * ENTRY, None, 2),
        (3 * CHUNK_BYTES, 2 * ENTRY + 5, None, 2),
        (CHUNK_BYTES + 1, 3 * ENTRY, None, 1),
        (0, 3 * ENTRY, None, 0),
        (3 * CHUNK_BYTES, 0, None, 0),
        (3 * CHUNK_BYTES, 3 * ENTRY, (IMAGES, CHUNK_BYTES + 5), 1),
        (3 * CHUNK_BYTES, 3 * ENTRY, (LOG, 2 * ENTRY + 40), 2),
    ],
)
def test_what_a_kill_or_a_bad_disk_leaves_is_checked_and_completed(
    tmp_path, unbroken, calls, images_kept, log_kept, flipped, sound
):
    expected, images, log = unbroken
    (tmp_path / IMAGES).write_bytes(images[:images_kept])
    (tmp_path / LOG).write_bytes(log[:log_kept])
    if flipped:
        content = bytearray((tmp_path / flipped[0]).read_bytes())
        content[flipped[1]] ^= 1
        (tmp_path / flipped[0]).write_bytes(content)
    assert generate(tmp_path) == expected
    assert calls == list(range(sound, 4))


def chunks(content, size, order):
    return b"".join(content[number * size : (number + 1) * size] for number in order)


@pytest.mark.parametrize(("order", "sound"), [((1, 0, 2), 0), ((0, 2, 1), 1), ((0, 0, 2), 1), ((0, 2), 1)])
def test_a_chunk_counts_in_its_own_place_only(tmp_path, unbroken, calls, order, sound):
    expected, images, log = unbroken
    (tmp_path / IMAGES).write_bytes(chunks(images, CHUNK_BYTES, order))
    (tmp_path / LOG).write_bytes(chunks(log, ENTRY, order))
    assert generate(tmp_path) == expected
    assert calls == list(range(sound, 4))


@pytest.mark.parametrize(("recipe", "seed"), [(RECIPE, 1), (make_recipe(32, "easy", keep_apart=False), 0)])
def test_chunks_of_another_dataset_variant_are_not_kept(tmp_path, unbroken, calls, recipe, seed):
    """The folder of another one, copied or renamed, would else give its images under our name."""
    list(generate_images(recipe, CHUNK, seed, tmp_path, workers=1, progress=False))
    calls.clear()
    assert generate(tmp_path) == unbroken[0]
    assert calls == [0, 1, 2, 3]


def test_a_chunk_that_changes_while_later_ones_are_made_ends_the_command(tmp_path, unbroken, monkeypatch):
    def make(recipe, seed, number):
        if number == 2:
            with (tmp_path / IMAGES).open("r+b") as file:
                file.seek(CHUNK_BYTES + 5)
                file.write(b"\xff")
        return generate_chunk(recipe, seed, number)

    monkeypatch.setattr(corpus, "generate_chunk", make)
    with pytest.raises(DataError, match="changed while images were generated"):
        generate(tmp_path)
    monkeypatch.undo()
    assert generate(tmp_path) == unbroken[0]


def test_a_killed_process_is_continued_by_the_next(tmp_path, calls):
    code = (
        "import sys; from pathlib import Path\n"
        "from lra.tasks.pathfinder.generator import make_recipe\n"
        "from lra.tasks.pathfinder.corpus import generate_images\n"
        "next(generate_images(make_recipe(32, 'easy'), 10**6, 0, Path(sys.argv[1]), workers=1, progress=False))\n"
    )
    root = Path(__file__).resolve().parents[4]
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    try:
        log = tmp_path / LOG
        deadline = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size >= 2 * ENTRY):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    finished = (tmp_path / LOG).stat().st_size // ENTRY
    total = (finished + 1) * CHUNK
    images, labels = generate(tmp_path, total=total)
    assert finished - 1 <= min(calls) <= finished
    direct = [generate_chunk(RECIPE, 0, number) for number in range(finished + 1)]
    assert images == b"".join(pictures.tobytes() for pictures, _ in direct)
    assert labels == b"".join(answers.tobytes() for _, answers in direct)


def test_a_folder_that_refuses_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"), sole_owner(tmp_path / "file" / "below"):
        pass
    with pytest.raises(DataError, match="cannot write"):
        generate(tmp_path / "missing")


def test_two_processes_do_not_share_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from lra.data.work_folder import sole_owner\n"
        "print('ready', flush=True)\n"
        "with sole_owner(Path(sys.argv[1])): print('in', flush=True)\n"
    )
    root = Path(__file__).resolve().parents[4]
    command = [sys.executable, "-c", code, str(tmp_path)]
    with sole_owner(tmp_path):
        child = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
    assert child.communicate() == ("in\n", None)
    assert child.returncode == 0
