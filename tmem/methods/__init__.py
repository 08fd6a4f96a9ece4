"""Ways to remember a stream: tmem, and what it is compared with."""
