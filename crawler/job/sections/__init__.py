"""Sections of the job file that need more than their model: its checks, and what is made of it."""
