"""Tiny archives in the official formats, and ways to spoil them."""

import io
import struct
import tarfile

import numpy as np


def tar_bytes(members, mode="w:gz"):
    """Return a tar archive; a member is (name, content) or a TarInfo without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name, kind=tarfile.SYMTYPE, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def review_members(train=10, test=4):
    """Reviews as in aclImdb_v1.tar.gz: half of each split is positive, and there is more that nobody asked for."""
    members = [("aclImdb/README", b"read me"), ("aclImdb/train/unsup/0_0.txt", b"no label")]
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            sentiment, stars = (("neg", 2), ("pos", 9))[number % 2]
            name = f"aclImdb/{split}/{sentiment}/{number // 2}_{stars}.txt"
            members.append((name, f"{split} {sentiment} {number // 2} <br /> caf\u00e9".encode()))
    return members


def cifar_arrays(rows=4, seed=0):
    """Return images (rows, 3072) and labels (rows,)."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, 3072), dtype=np.uint8), generator.integers(0, 10, rows, dtype=np.uint8)


def cifar_pickle(images, labels):
    """Write protocol 2 as Python 2's cPickle wrote the released files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"M"
        + struct.pack("<H", images.shape[0])
        + b"M"
        + struct.pack("<H", images.shape[1])
        + b"\x86"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"labels") + numbers + text(b"data") + array + b"u."


def cifar_binary(images, labels):
    """Write rows of a label and an image."""
    return np.concatenate([labels[:, None], images], axis=1).tobytes()


def cifar_members(dataset="py", rows=4):
    """The six files of one dataset variant, and the read-me that comes with them."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    write, suffix = (cifar_pickle, "") if dataset == "py" else (cifar_binary, ".bin")
    folder = f"cifar-10-batches-{dataset}"
    members = [(f"{folder}/{name}{suffix}", write(*cifar_arrays(rows, seed))) for seed, name in enumerate(names)]
    return [(f"{folder}/readme.html", b"<html>"), *members]
