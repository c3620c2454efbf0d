"""A network laboratory: hosts, NATs and bad links on one Linux machine, for tests of real programs.

``docs/testing.rst`` says how to use it.  Nothing else in the package imports this one.
"""
