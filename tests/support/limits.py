"""Limits that the template sets, and that the tests of the code rely on."""

MOST_RECEIPTS = 20  # of a message, before it is a dead letter
