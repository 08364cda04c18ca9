import subprocess
import sys

import pytest

from paredown.evaluators.runtimes import get_runtime

CHECK = """
import socket, sys
def refuse(*args, **kwargs):
    print("network", args)
    raise OSError
socket.getaddrinfo = socket.socket.connect = refuse
from paredown.evaluators.runtimes import get_runtime
get_runtime("openvino").prepare()
print("openvino_telemetry" in sys.modules, "openvino.tools.ovc" in sys.modules)
"""


@pytest.mark.slow
def test_import_reports_nothing_over_the_network() -> None:
    if get_runtime("openvino").version() is None:
        pytest.skip("openvino is not installed")
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"
