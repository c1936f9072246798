"""The networks a method can name."""
