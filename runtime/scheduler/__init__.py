"""Ids only: requests, ordering policies, stops, and the planner of every step."""
