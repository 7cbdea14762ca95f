"""Schedules and controllers of τ over the updates."""
