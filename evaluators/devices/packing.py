"""The server for a device as one file."""

from __future__ import annotations

import tempfile
import zipapp
from pathlib import Path
from shutil import copytree, ignore_patterns

from .. import device_server

_PACKAGE = "paredown_device"


def pack_server(target: Path) -> None:
    """Write the server as a file that `python` runs on a board without Paredown.

    Args:
        target: The file, such as `paredown-device.pyz`.
    """
    source = Path(device_server.__file__).parent
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
        copytree(source, Path(folder) / _PACKAGE, ignore=ignore_patterns("__pycache__"))
        zipapp.create_archive(
            folder, target, "/usr/bin/env python3", main=f"{_PACKAGE}.__main__:main"
        )
