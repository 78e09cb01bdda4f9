"""The randomized oracle: restores to random moments are compared with what PostgreSQL had committed then."""
