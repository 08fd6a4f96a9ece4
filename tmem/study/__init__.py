"""Studies: what training changes, what is forgotten, and how initialisations of A compare."""
