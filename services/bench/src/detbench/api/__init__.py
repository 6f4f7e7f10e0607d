"""The HTTP API of a detserver, seen from outside: its calls, and what it answers."""
