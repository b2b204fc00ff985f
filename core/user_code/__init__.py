"""Code of the user: a class found by its name, permitted, imported; errors with their place in its files."""
