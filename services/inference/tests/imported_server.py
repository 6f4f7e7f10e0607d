"""What a server imports, in the order in which it does."""

from detserver import lean_imports

lean_imports.install()

import detserver.http.routes  # noqa: E402, F401
