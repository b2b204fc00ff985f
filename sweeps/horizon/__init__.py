"""Loss over settings and length: predictions at the full length from short runs, and the runs that teach most."""
