"""What any program of this kind needs; imports nothing of ours."""
