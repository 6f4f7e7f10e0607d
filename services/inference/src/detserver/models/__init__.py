"""Model sets, their configurations, and where their weights come from."""
