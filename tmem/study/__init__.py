"""Studies: what training changes, what is forgotten, what an initialisation is worth."""
