"""The same server as an application of Ray Serve: a process for each GPU behind one address.

`detserver.cluster:application` is what `serve run` and `serve deploy` build.
"""

from detserver.cluster.application import application

__all__ = ["application"]
