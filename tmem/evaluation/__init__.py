"""`tmem eval`: methods on a task, scored and recorded."""
