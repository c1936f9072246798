"""Files that ask for more than a machine has, and names that are code."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path


def zip_bomb() -> bytes:
    """100 MB of zeros in 100 kB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("slide.svs", bytes(10**8))
    return stream.getvalue()


def tile_bomb(side_px: int, tile_px: int) -> bytes:
    """A BigTIFF, ``side_px`` square, whose deflated tiles all lie at one place: 10 kB.

    Aperio's by its description, 1 um/px. Each tile asks for ``4 * tile_px ** 2`` bytes when it is
    read.
    """
    data = zlib.compress(bytes(10_000_000), 9)
    count = (-(-side_px // tile_px)) ** 2
    description = b"Aperio Image Library v10.0.0\r\nbomb|MPP = 1.0\0"
    blobs = bytearray()

    def put(blob: bytes) -> int:
        blobs.extend(blob)
        return 16 + len(blobs) - len(blob)

    description_at, data_at = put(description), put(data)
    offsets = put(struct.pack(f"<{count}Q", *[data_at] * count)) if count > 1 else data_at
    lengths = put(struct.pack(f"<{count}Q", *[len(data)] * count)) if count > 1 else len(data)
    bits = int.from_bytes(struct.pack("<3H", 8, 8, 8), "little")
    tags = [  # number, type, count, value or place
        (256, 4, 1, side_px),
        (257, 4, 1, side_px),
        (258, 3, 3, bits),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (270, 2, len(description), description_at),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 4, 1, tile_px),
        (323, 4, 1, tile_px),
        (324, 16, count, offsets),
        (325, 16, count, lengths),
    ]
    directory = struct.pack("<Q", len(tags))
    directory += b"".join(struct.pack("<HHQQ", *tag) for tag in tags) + bytes(8)
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16 + len(blobs))
    return header + bytes(blobs) + directory


def write_bombs(folder: Path) -> dict[str, str]:
    """Write some of each, and return what is to become of each slide, by its id."""
    (folder / "zip.svs").write_bytes(zip_bomb())
    (folder / "tile.svs").write_bytes(tile_bomb(65_536, 65_536))
    return {"zip": "failed", "tile": "quarantined"}


def write_vast(path: Path) -> Path:
    """A slide that says it is 2 km wide."""
    path.write_bytes(tile_bomb(2**31 - 16, 2**24))
    return path
