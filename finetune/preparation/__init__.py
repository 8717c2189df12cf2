"""From a job to what a run needs: the base, the data, and what is to be trained; each stage written once."""
