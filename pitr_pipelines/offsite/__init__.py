"""The off-site copy: one call a day, for all databases together."""
