"""First-party plugins: one module each, named by an entry point of the group `nlhf_zoo`, like anybody's."""
