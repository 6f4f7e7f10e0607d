"""The process that counts the kernels of a request: `python -m detserver.http.counting IMPLEMENTATION MODEL_SET`."""

import json
import logging
import sys

from detserver import lean_imports


def main(implementation: str, model_set: str) -> int:
    """Count in this process, print the result as a line of JSON, and return the exit status.

    The server's settings are a JSON object on standard input.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    lean_imports.install()
    from detserver.engine.work import failures
    from detserver.errors import DetserverError
    from detserver.http.server import Server
    from detserver.machine.device import use_ieee_float32
    from detserver.machine.profiling import count_kernels
    from detserver.settings import Settings

    try:
        server = Server(Settings(**json.load(sys.stdin)))
        use_ieee_float32()
        built = server.registry.get(implementation)(server.zoo.model_set(model_set), server.weights, server.device)
        with failures((implementation, model_set)):
            built.prepare()
            built.load()
            image = built.example()
            count = count_kernels(lambda: built.predict_batch([image]), server.device)
    except DetserverError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"kernels_per_request": count}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
