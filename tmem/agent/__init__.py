"""The agent: write (text -> pairs), learn (pairs -> one row of the bank), answer (decode with that row), and the loop."""
