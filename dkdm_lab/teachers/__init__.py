"""Other people's models: read, distilled, written."""
