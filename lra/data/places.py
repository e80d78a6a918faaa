# SPDX-License-Identifier: Apache-2.0
"""Where the data of the tasks can be had: every place that is known, and what is known of it.

`lra-data fetch` takes its addresses from here, and `lra-data where` prints this table. Nothing in it was downloaded for
this table. Sizes and digests were read in public pages, code and records of other projects in November 2026.
"""

from __future__ import annotations

from dataclasses import dataclass

from lra.data.download import Remote

HUGGING_FACE = (".huggingface.co", ".hf.co")
"""Hosts that huggingface.co sends large files from."""
AAN_REVISION = "6cb133c44f406da743661488df9e977b87d98775"
AAN_FOLDER = f"https://huggingface.co/datasets/OpenNLPLab/lra/resolve/{AAN_REVISION}/data/aan"
PATHFINDERS = ("pathfinder", "pathfinder_continuous", "pathfinder64", "pathx", "pathx256")
IMAGES = ("image", "image_continuous")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A place that has the data of one or more tasks."""

    name: str
    tasks: tuple[str, ...]
    address: str
    """A page or a file; for files at a fixed revision, the folder of that revision."""
    form: str
    size: str
    licence: str
    sha256: tuple[tuple[str, str], ...] = ()
    """Names of files and their SHA-256, as others report them; `fetch` insists on those that it uses."""
    state: str
    """What is reported of the place, and when."""
    read_with: str
    """The command that reads it, or why there is none."""
    fetched_as: str = ""
    """The source of a task (`Task.source_key`) that `lra-data fetch` takes from here."""
    remotes: tuple[Remote, ...] = ()
    """What `lra-data fetch` downloads."""


def _aan(split: str, gigabytes: float) -> Remote:
    """Return one of the three files of pairs; the page rounds sizes to 10 MB, and GB may be 10^9 bytes or 2^30."""
    return Remote(
        url=f"{AAN_FOLDER}/new_aan_pairs.{split}.tsv",
        least_size=int((gigabytes - 0.005) * 10**9),
        size_limit=int((gigabytes + 0.005) * 2**30),
        sha256=None,
        hosts=HUGGING_FACE,
    )


_IMDB = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
_CIFAR_BINARY = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

PLACES: tuple[Place, ...] = (
    Place(
        name="archive of the benchmark",
        tasks=("listops", "retrieval", *PATHFINDERS),
        address="https://storage.googleapis.com/long-range-arena/lra_release.gz",
        form="one gzip-compressed tar of ListOps, Retrieval and Pathfinder",
        size="7.7 GB, 18.6 GB unpacked (reported)",
        licence="none stated; the code of the benchmark is Apache-2.0",
        state="reported to answer 403 Forbidden by three projects in June to August 2026; worked in December 2024",
        read_with="retrieval: lra-data prepare retrieval --from FILE; others: unpack it, and lra-data prepare TASK "
        "--set source=official --from FOLDER",
    ),
    Place(
        name="Hugging Face OpenNLPLab/lra",
        tasks=("retrieval",),
        address=f"https://huggingface.co/datasets/OpenNLPLab/lra, revision {AAN_REVISION}, folder data/aan",
        form="the three files new_aan_pairs.{train,eval,test}.tsv of the benchmark, by name",
        size="8.53, 1.05 and 1.04 GB (rounded, of the page); fetch keeps the first 4,000 bytes of each document",
        licence="Apache-2.0 on the page",
        state="seen in 2026; other projects call them the official files. Rows are counted when they are read",
        read_with="lra-data fetch retrieval",
        fetched_as="retrieval",
        remotes=(_aan("eval", 1.05), _aan("test", 1.04), _aan("train", 8.53)),
    ),
    Place(
        name="Kaggle a24998667/long-range-arena",
        tasks=("listops", *PATHFINDERS),
        address="https://www.kaggle.com/datasets/a24998667/long-range-arena, version 1",
        form="folders listops/listops and pathfinder/pathfinder/pathfinder{32,64,128,256}",
        size="not stated; 96,000 / 2,000 / 2,000 rows and 200,000 hard images of 32 pixels (reported)",
        licence="not known",
        state="a community copy, used by one project in 2026; not tried here on the real files. Which of the two "
        "copies of pathfinder128 it has is not known",
        read_with="lra-data prepare TASK --set source=official --from FOLDER",
    ),
    Place(
        name="Kaggle a24998667/long-range-arena-processed",
        tasks=("listops", "text", "retrieval", "image", "pathfinder"),
        address="https://www.kaggle.com/datasets/a24998667/long-range-arena-processed",
        form="pickles lra-TASK.{train,dev,test}.pickle, made by the code of Nystromformer",
        size="not stated",
        licence="not known",
        state="a community copy, used by three projects; not tried here on the real files; whether its ListOps has "
        "brackets is not known, and counted when it is read",
        read_with="lra-data prepare TASK --set source=nystromformer --from FOLDER; a dataset variant of its own",
    ),
    Place(
        name="Stanford",
        tasks=("text",),
        address="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        form="one tar.gz of reviews, a file each",
        size="84,125,825 bytes (reported)",
        sha256=(("aclImdb_v1.tar.gz", _IMDB),),
        licence="none stated; asks to cite Maas et al. 2011",
        state="the original; the digest is in the records of TensorFlow Datasets and others",
        read_with="lra-data fetch text; lra-data prepare text --from FILE",
        fetched_as="text",
        remotes=(
            Remote(
                url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
                size_limit=100_000_000,
                sha256=_IMDB,
            ),
        ),
    ),
    Place(
        name="Hugging Face stanfordnlp/imdb",
        tasks=("text",),
        address="https://huggingface.co/datasets/stanfordnlp/imdb, folder plain_text",
        form="parquet, train-00000-of-00001.parquet and test-00000-of-00001.parquet",
        size="not stated",
        licence="not known",
        state="seen in 2026; the reviews have no numbers here, so the held-out ones are others",
        read_with="lra-data prepare text --from FOLDER (extra export)",
    ),
    Place(
        name="Toronto, binary version",
        tasks=IMAGES,
        address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        form="one tar.gz of six files",
        size="170,052,171 bytes (reported)",
        sha256=(("cifar-10-binary.tar.gz", _CIFAR_BINARY),),
        licence="none stated; asks to cite Krizhevsky 2009",
        state="the original; several projects report the digest",
        read_with="lra-data fetch image; lra-data prepare image --from FILE",
        fetched_as="image",
        remotes=(
            Remote(
                url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                size_limit=200_000_000,
                sha256=_CIFAR_BINARY,
            ),
        ),
    ),
    Place(
        name="Toronto, python version",
        tasks=IMAGES,
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        form="one tar.gz of six pickles",
        size="170,498,071 bytes (reported)",
        sha256=(("cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),),
        licence="none stated; asks to cite Krizhevsky 2009",
        state="the original; several projects report the digest",
        read_with="lra-data prepare image --from FILE",
    ),
    Place(
        name="Hugging Face uoft-cs/cifar10",
        tasks=IMAGES,
        address="https://huggingface.co/datasets/uoft-cs/cifar10, "
        "revision 0b2714987fa478483af9968de7c934580d0bb9a2, folder plain_text",
        form="parquet of PNG images, train-00000-of-00001.parquet and test-00000-of-00001.parquet",
        size="119,705,255 and 23,940,850 bytes (reported)",
        sha256=(
            ("train-00000-of-00001.parquet", "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883"),
            ("test-00000-of-00001.parquet", "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de"),
        ),
        licence="not known",
        state="seen in 2026; several projects report the digests; the order of the images may be another one",
        read_with="lra-data prepare image --from FOLDER (extra export)",
    ),
    Place(
        name="Hugging Face meerkat-ml/pathfinder",
        tasks=("pathfinder", "pathx", "pathx256"),
        address="https://huggingface.co/datasets/meerkat-ml/pathfinder",
        form="webdataset archives of meerkat blocks",
        size="not stated",
        licence="not known",
        state="seen in 2026",
        read_with="not read; needs the meerkat library",
    ),
    Place(
        name="facebookresearch/mega",
        tasks=("listops", "text", "retrieval", "image", "pathfinder", "pathx"),
        address="https://github.com/facebookresearch/mega, the file lra.zip that it links to",
        form="text, input/*.src and label/*.label, tokenized already",
        size="not stated",
        licence="not known",
        state="seen in 2026",
        read_with="not read; its tokens are not those of the benchmark",
    ),
    Place(
        name="generated here",
        tasks=("listops", *PATHFINDERS),
        address="no network is needed",
        form="the same data on every machine, from a seed",
        size="ListOps 100,000 trees; Pathfinder 200,000 images: 0.2 GB at 32 pixels, 13.1 GB at 256",
        licence="Apache-2.0, as this project",
        state="new examples of the benchmark's distribution, labelled as generated in every table",
        read_with="lra-data prepare TASK",
    ),
)

REMOTES: dict[str, tuple[Remote, ...]] = {place.fetched_as: place.remotes for place in PLACES if place.fetched_as}
"""What `lra-data fetch` downloads, by the key of a task's source: one file of known digest, or files of pairs."""


def places_of(task: str | None) -> list[Place]:
    """Return the places of a task, or all."""
    return [place for place in PLACES if task is None or task in place.tasks]
