"""What a run leaves: the names of its files, what they say, and how they are read back."""
