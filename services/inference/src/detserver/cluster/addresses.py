"""Where a replica listens for the other processes of its cluster."""

from collections.abc import Callable

import ray
from ray.serve._private import replica


def listen_on_node_alone() -> None:
    """Let a port that this replica opens be open on the address of its node, not on every address of the machine.

    What comes to it is unpickled: who can reach it can run any program. Ray (2.60) offers no setting for it.
    """
    add_port: Callable[[object, str], int] = vars(replica)["add_port_to_grpc_server"]

    def add_port_of_node(server: object, address: str) -> int:
        port = address.rpartition(":")[2]
        host = ray.util.get_node_ip_address()
        return add_port(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    vars(replica)["add_port_to_grpc_server"] = add_port_of_node
