"""The testbed's host side: builds the emulated machine, starts and stops it, and talks to execd in it."""
