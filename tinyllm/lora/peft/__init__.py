"""PEFT's adapter folder: its config, the names of its arrays, reading and writing."""
