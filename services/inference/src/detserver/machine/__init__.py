"""What the server runs on: the device, its memory, the CPUs that may be used."""
