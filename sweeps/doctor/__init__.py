"""What `pretune doctor` finds: nodes and their cards, claims on one device, a sweep from end to end."""
