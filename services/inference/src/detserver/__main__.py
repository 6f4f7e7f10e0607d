"""`detserver`, or `python -m detserver`: the server's command line."""

import logging
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from detserver.errors import BadConfiguration
from detserver.settings import Settings


def main() -> int:
    """Serve until stopped; returns the exit status, 2 when a setting cannot be used."""
    try:
        settings = CliApp.run(Settings)
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        # Both log a line per request, which a hostile client could fill a disk with.
        for chatty in ("httpx", "python_multipart"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        # Torch and effdet take seconds to import: not for --help, or a setting that is plainly wrong.
        from detserver.api import create_app

        app = create_app(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = "DETSERVER_" + "_".join(str(part) for part in first["loc"]).upper()
        sys.stderr.write(f"error: {name}: {first['msg']}\n")
        return 2
    except (BadConfiguration, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
