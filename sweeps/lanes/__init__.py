"""Lanes: warm worker groups that train trials, their number in a cluster, and nodes that join and leave."""
