"""Builds the test images from Debian packages, without a registry and without an engine."""
