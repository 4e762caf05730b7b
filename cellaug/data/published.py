"""Public sets of blood cells, from `published.yaml`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

_FACTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_PBC, _MNIST = _FACTS["pbc"], _FACTS["bloodmnist"]
MANIFEST = "manifest.csv"  # lists a folder's images: path, label and more
MANIFESTS = (MANIFEST, "manifest.parquet")
PBC_TOP = "PBC_dataset_normal_DIB"
PBC_FOLDERS: tuple[str, ...] = tuple(_PBC["folders"])
PBC_FINE: dict[str, str] = _PBC["fine"]
"""Fine classes by file-name prefix: granulocytes as they mature, then the others."""
BLOODMNIST = tuple(f"bloodmnist-{size}" for size in _MNIST["md5"])
BLOODMNIST_CLASSES: tuple[str, ...] = tuple(_MNIST["classes"])
CLASSES: dict[str, tuple[tuple[str, ...], str]] = {
    "pbc": (PBC_FOLDERS, _PBC["credit"]),
    "pbc-fine": (tuple(PBC_FINE.values()), _PBC["credit"]),
    **dict.fromkeys(BLOODMNIST, (BLOODMNIST_CLASSES, f"{_MNIST['credit']} {_PBC['credit']}")),
}
"""Class names and credit of the public sets, by name."""
ACQUISITION: dict[str, str] = dict.fromkeys(CLASSES, _PBC["acquisition"])
"""How the images of the public sets were made, as far as their authors say."""
NAMES = tuple(CLASSES)
BY_NAME = ("phantom", "phantom-2", *NAMES)  # what `open_dataset` takes in place of a path
DIGESTS = Path(__file__).with_name("pbc_digests.bin")  # 8 bytes of each SHA-256 of 10,000 of PBC


@dataclass(frozen=True)
class Published:
    """A set as its authors publish it: one archive and what is known of it.

    `images` are the numbers of its images: of PBC by "folder/file-name prefix", of BloodMNIST by
    side of the official split. `most_bytes` is the maximum of the file (and of PBC's unpacked
    images), `unpacked_bytes` what the folder needs on disk. `size` is in pixels.
    """

    url: str
    page: str
    file: str
    images: Mapping[str, int]
    most_bytes: int
    unpacked_bytes: int
    size: int = 0
    md5: str = ""  # if none is published


def _bloodmnist(size: int, md5: str) -> Published:
    file = "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"
    url = f"{_MNIST['page']}/files/{file}?download=1"
    count, image_bytes = sum(_MNIST["images"].values()), size * size * 3
    most = 2**20 + count * image_bytes * 101 // 100  # deflate hardly ever adds anything
    unpacked = count * (image_bytes + 4096)  # a file takes up whole blocks of the disk
    return Published(url, _MNIST["page"], file, _MNIST["images"], most, unpacked, size, md5)


SETS = {"pbc": Published(**_PBC["archive"])}
"""What `fetch` knows, by name."""
SETS |= {f"bloodmnist-{size}": _bloodmnist(size, md5) for size, md5 in _MNIST["md5"].items()}
