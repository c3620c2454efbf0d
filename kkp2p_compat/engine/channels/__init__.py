"""What the application holds."""
