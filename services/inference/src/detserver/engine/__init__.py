"""Admission, batching, and the one thread that uses the device."""
