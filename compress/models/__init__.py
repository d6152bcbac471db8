"""Loading a teacher, and cutting a student out of it: one surgery module per family."""
