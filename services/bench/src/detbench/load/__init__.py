"""Load: the Locust file, usable by itself, and the driver that measures one run with it."""
