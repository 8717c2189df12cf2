"""What is known of each family without loading anything: one file each, which families/catalogue.py finds. Torch-free."""
