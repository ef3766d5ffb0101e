"""A small training loop on real data, checks against the reference, and files that are whole or absent."""
