"""Lanes: warm worker groups that train trials, how many a cluster holds, and nodes that come and go."""
