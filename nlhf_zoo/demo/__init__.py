"""The demonstration: `python -m nlhf_zoo.demo --out DIR`."""
