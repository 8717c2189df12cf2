"""The one loop, and what stands round it."""
