"""Names the queues of the messages that bring a worker to a generation."""

from typing import Literal

# `lines` are those of batches. `polls` has the later rounds of generations whose upstream answers with tasks.
WorkQueue = Literal["requests", "lines", "polls"]
