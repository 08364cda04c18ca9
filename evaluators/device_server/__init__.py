"""The server on a device: TVM's RPC, hardened. Needs python, numpy and tvm's runtime alone.

The package stands on its own, so that it can be copied to a board as one file
(`paredown device pack`): no module of it imports another part of Paredown.
"""

from .wire import Wire, WireError

__all__ = ["Wire", "WireError"]
