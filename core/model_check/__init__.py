"""The contract of a user's class, checked on a few rows: shapes, gradients, independence of rows, order, devices."""
