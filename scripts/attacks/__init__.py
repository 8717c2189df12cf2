"""Attacks on the commands and the readers: kills, faults, damage, fuzz, hostile files, scarce resources, neighbours."""
