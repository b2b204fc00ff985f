"""Claims about a machine, checked on it: rates, collectives, predicted memory, shortages survived, equal losses."""
