"""The book: its chapters executed, and pictures that move."""
