"""What is measured against what: cases, providers, the table. Installed as `tmem.bench`."""
