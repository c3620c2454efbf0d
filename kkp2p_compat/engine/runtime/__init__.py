"""What an engine lives in: its thread, its callbacks, its log."""
