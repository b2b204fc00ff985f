"""Files in folders that others can write: no link is followed, a file is whole or absent, JSON has limits."""
