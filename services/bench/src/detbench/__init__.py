"""Loads, compares and reports on the implementations that a detserver serves; talks to it over HTTP only."""

__version__ = "0.1.0"
